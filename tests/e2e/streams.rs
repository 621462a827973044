//! Standard input, output and error.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use isopod_tests::{
    Bed, Case, Container, Runtime, check_eq,
    image::sha256,
    process::{self, eventually},
};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("stdout_and_stderr_stay_apart", apart)
        .under_both_containerds()
        .smoke(),
    Case::both("stdin_is_read_to_its_end", stdin).smoke(),
    Case::both("stdin_of_an_exec", exec_stdin).under_both_containerds(),
    Case::both("no_stdin_is_end_of_file", no_stdin),
    Case::both("a_line_arrives_while_the_process_runs", interactive),
    Case::both("output_without_newline_is_not_lost", last_bytes),
    Case::both("bytes_are_not_touched", bytes),
    Case::both("output_of_a_fast_exit_is_whole", fast_exit),
    Case::both("output_after_init_forked_away", grandchild),
    Case::both("output_goes_to_a_file", file),
    Case::both("a_logging_program_gets_the_output", logging_program).under_both_containerds(),
];

const SOON: Duration = Duration::from_secs(60);

fn apart(bed: &Bed) -> Result<()> {
    let run = bed
        .container()
        .run(["sh", "-c", "echo to-out; echo to-err >&2; echo more"])?
        .ok()?;
    check_eq!(run.out(), "to-out\nmore\n");
    check_eq!(run.err(), "to-err\n");
    let container = bed.container().sleeping()?;
    let run = container
        .exec(["sh", "-c", "echo to-err >&2; echo to-out"])?
        .ok()?;
    check_eq!(run.out(), "to-out\n");
    check_eq!(run.err(), "to-err\n");
    container.end()
}

fn stdin(bed: &Bed) -> Result<()> {
    // `ctr run` forgets an end of file that comes before the task does: end it once output has come.
    let mut run = bed.container().background(["cat"])?;
    run.write(b"one\ntwo\n")?;
    run.line(SOON, |line| line == "two")?;
    run.close_stdin();
    check_eq!(run.finish(SOON)?, 0);
    check_eq!(run.lines(), ["one", "two"]);
    Ok(())
}

fn exec_stdin(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let run = container
        .exec_reading("alpha\nbeta\n", ["sort", "-r"])?
        .ok()?;
    check_eq!(run.out(), "beta\nalpha\n");
    container.end()
}

fn no_stdin(bed: &Bed) -> Result<()> {
    let container = bed.container().start(["cat"])?;
    container.becomes("STOPPED")?;
    check_eq!(container.delete_task()?, 0);
    container.remove()
}

fn interactive(bed: &Bed) -> Result<()> {
    let container = bed.container();
    let mut run = container.background([
        "sh",
        "-c",
        "while read line; do echo got $line; done; echo end",
    ])?;
    for word in ["first", "second", "third"] {
        run.write(format!("{word}\n").as_bytes())?;
        run.line(Duration::from_secs(60), |line| {
            line == format!("got {word}")
        })?;
    }
    run.close_stdin();
    run.line(Duration::from_secs(20), |line| line == "end")?;
    check_eq!(run.finish(Duration::from_secs(20))?, 0);
    Ok(())
}

fn last_bytes(bed: &Bed) -> Result<()> {
    let run = bed
        .container()
        .run(["sh", "-c", "printf no-newline; printf err >&2; exit 3"])?;
    let run = run.code_is(3)?;
    check_eq!(run.out(), "no-newline");
    check_eq!(run.err(), "err");
    Ok(())
}

fn bytes(bed: &Bed) -> Result<()> {
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let container = bed.container().sleeping()?;
    let run = container.exec_reading(all.clone(), ["cat"])?.ok()?;
    check_eq!(
        sha256(&run.stdout),
        sha256(&all),
        "what cat copied ({} bytes)",
        run.stdout.len()
    );
    container.end()
}

fn fast_exit(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    for size in [1, 4095, 65536, 200_000] {
        let run = container
            .exec(["sh", "-c", &format!("head -c {size} /dev/zero")])?
            .ok()?;
        check_eq!(run.stdout.len(), size);
    }
    container.end()
}

fn grandchild(bed: &Bed) -> Result<()> {
    // The exit of init ends the container: its orphans must not hold `ctr` back.
    let began = Instant::now();
    let run = bed
        .container()
        .run(["sh", "-c", "sleep 300 & echo parent"])?
        .ok()?;
    check_eq!(run.out(), "parent\n");
    anyhow::ensure!(
        began.elapsed() < Duration::from_secs(60),
        "took {:?}",
        began.elapsed()
    );
    Ok(())
}

const TWO_LINES: &str = "echo to-out; echo to-err >&2";

/// Starts a container whose output goes to `uri`.
fn start_logged<'b>(bed: &'b Bed, uri: &str, script: &str) -> Result<Container<'b>> {
    let run = bed.container().named("logged");
    let flags = ["--detach", "--log-uri", uri];
    let mut command = run.command(&flags, ["sh", "-c", script])?;
    process::run(&mut command, None, SOON)?.ok()?;
    Ok(Container::existing(bed, "logged"))
}

/// Runs a container whose output goes to `uri`, and deletes it.
fn logged(bed: &Bed, uri: &str) -> Result<()> {
    let container = start_logged(bed, uri, TWO_LINES)?;
    container.becomes("STOPPED")?;
    container.end()
}

fn file(bed: &Bed) -> Result<()> {
    let path = bed.dir.join("output.log");
    let uri = format!("file://{}", path.display());
    let lines = || -> Result<Vec<String>> {
        let mut lines: Vec<String> = fs::read_to_string(&path)?
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort_unstable();
        Ok(lines)
    };
    if bed.runtime == Runtime::Isopod {
        logged(bed, &uri)?;
    } else {
        // Its shim closes the file when the first of the two streams ends, whatever the other still holds.
        let container = start_logged(bed, &uri, &format!("{TWO_LINES}; exec sleep 100000"))?;
        eventually("two lines in the file", SOON, || {
            Ok((lines()?.len() == 2).then_some(()))
        })?;
        container.end()?;
    }
    check_eq!(lines()?, ["to-err", "to-out"]);
    Ok(())
}

fn logging_program(bed: &Bed) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let (program, dir) = (bed.dir.join("logger"), bed.dir.join("logged"));
    fs::create_dir(&dir)?;
    // Ready once it has closed 5; $1 is the key, $2 its value.
    let script = "#!/bin/sh\nexec 5>&-; cd $2; echo $CONTAINER_NAMESPACE $CONTAINER_ID > who; \
        cat <&4 > err & cat <&3 > out; wait\n";
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    logged(
        bed,
        &format!("binary://{}?dir={}", program.display(), dir.display()),
    )?;
    check_eq!(fs::read_to_string(dir.join("out"))?, "to-out\n");
    check_eq!(fs::read_to_string(dir.join("err"))?, "to-err\n");
    let who = fs::read_to_string(dir.join("who"))?;
    check_eq!(who, format!("{} logged\n", bed.namespace));
    Ok(())
}
