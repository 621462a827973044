//! The Task service, through `ctr task`, and the events that tell of it.

use std::time::Duration;

use anyhow::{Context, Result};
use isopod_tests::{Bed, Case, check_contains, check_eq, process::eventually};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("list_shows_states", list),
    Case::both("processes_are_listed", ps),
    Case::both("metrics", metrics).under_both_containerds(),
    Case::both("pause_and_resume", pause).under_both_containerds(),
    Case::both("kill_with_each_signal", signals),
    Case::both("kill_all_reaches_every_process", kill_all).under_both_containerds(),
    Case::both("kill_an_exec", kill_exec).smoke(),
    Case::both("kill_of_a_stopped_task_is_not_found", kill_stopped),
    Case::both("delete_of_a_running_task_is_refused", delete_running),
    Case::both("delete_by_force", delete_force).under_both_containerds(),
    Case::both("create_start_and_restart_with_the_same_id", again),
    Case::both("events_come_in_order", events).under_both_containerds(),
    Case::both("events_of_an_exec", exec_events).under_both_containerds(),
    Case::both("many_execs_at_once", many_execs),
    Case::both("an_exec_dies_with_its_container", exec_dies),
    Case::both("orphans_are_reaped", reaping),
];

fn list(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    check_eq!(container.status()?.as_deref(), Some("RUNNING"));
    container.kill("KILL")?;
    container.becomes("STOPPED")?;
    container.delete_task()?;
    check_eq!(container.status()?, None);
    container.remove()
}

fn ps(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let count = || -> Result<usize> {
        Ok(bed
            .ctr_run(["task", "ps", &container.id])?
            .ok()?
            .out()
            .lines()
            .skip(1)
            .count())
    };
    check_eq!(count()?, 1);
    let mut command = container.exec_command(&[], ["sh", "-c", "echo up; exec sleep 1000"]);
    let mut exec = isopod_tests::Background::start(&mut command)?;
    exec.line(Duration::from_secs(30), |line| line == "up")?;
    check_eq!(count()?, 2);
    container.end()?;
    exec.finish(Duration::from_secs(30))?;
    Ok(())
}

fn metrics(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let out = bed.ctr_run(["task", "metrics", &container.id])?.ok()?.out();
    check_contains!(out, "pids.current");
    // The host's cgroups may be of version 1; a guest's are of version 2.
    let usage = out.lines().find_map(|line| {
        ["memory.usage_in_bytes ", "memory.usage "]
            .iter()
            .find_map(|name| line.strip_prefix(name))
    });
    let usage: u64 = usage
        .with_context(|| format!("memory use in {out}"))?
        .trim()
        .parse()?;
    anyhow::ensure!(usage > 0, "no memory is used:\n{out}");
    container.end()
}

fn pause(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    let tick = "while true; do echo x >> /data/ticks; sleep 0.05; done";
    let container = bed
        .container()
        .bind(&volume, "/data", "rw")
        .start(["sh", "-c", tick])?;
    let ticks = || std::fs::metadata(volume.join("ticks")).map_or(0, |file| file.len());
    eventually("it ticks", Duration::from_secs(20), || {
        Ok((ticks() > 0).then_some(()))
    })?;
    bed.ctr_run(["task", "pause", &container.id])?.ok()?;
    container.becomes("PAUSED")?;
    let frozen = ticks();
    std::thread::sleep(Duration::from_millis(500));
    check_eq!(ticks(), frozen, "ticks while paused");
    bed.ctr_run(["task", "resume", &container.id])?.ok()?;
    container.becomes("RUNNING")?;
    eventually("it ticks again", Duration::from_secs(20), || {
        Ok((ticks() > frozen).then_some(()))
    })?;
    container.end()
}

fn signals(bed: &Bed) -> Result<()> {
    let script = "for s in HUP INT TERM USR1 USR2; do trap \"echo got $s\" $s; done; echo ready; while true; do sleep 0.05; done";
    let run = bed.container();
    let mut output = run.background(["sh", "-c", script])?;
    output.line(Duration::from_secs(60), |line| line == "ready")?;
    for signal in ["HUP", "INT", "TERM", "USR1", "USR2", "SIGHUP", "10"] {
        output.forget();
        bed.ctr_run(["task", "kill", "--signal", signal, run.id()])?
            .ok()?;
        let name = match signal {
            "SIGHUP" => "HUP",
            "10" => "USR1",
            other => other,
        };
        output.line(Duration::from_secs(20), |line| {
            line == format!("got {name}")
        })?;
    }
    bed.ctr_run(["task", "kill", "--signal", "KILL", run.id()])?
        .ok()?;
    check_eq!(output.finish(Duration::from_secs(30))?, 137);
    Ok(())
}

fn kill_all(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let mut exec = isopod_tests::Background::start(
        &mut container.exec_command(&[], ["sh", "-c", "echo up; sleep 1000"]),
    )?;
    exec.line(Duration::from_secs(30), |line| line == "up")?;
    bed.ctr_run(["task", "kill", "--all", "--signal", "KILL", &container.id])?
        .ok()?;
    check_eq!(exec.finish(Duration::from_secs(30))?, 137);
    container.becomes("STOPPED")?;
    check_eq!(container.delete_task()?, 137);
    container.remove()
}

fn kill_exec(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let mut command = bed.ctr();
    command.args([
        "task",
        "exec",
        "--exec-id",
        "victim",
        &container.id,
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    let mut exec = isopod_tests::Background::start(&mut command)?;
    exec.line(Duration::from_secs(30), |line| line == "up")?;
    bed.ctr_run([
        "task",
        "kill",
        "--exec-id",
        "victim",
        "--signal",
        "TERM",
        &container.id,
    ])?
    .ok()?;
    check_eq!(exec.finish(Duration::from_secs(30))?, 143);
    check_eq!(container.status()?.as_deref(), Some("RUNNING"));
    container.end()
}

fn kill_stopped(bed: &Bed) -> Result<()> {
    let container = bed.container().start(["true"])?;
    container.becomes("STOPPED")?;
    let run = bed.ctr_run(["task", "kill", "--signal", "TERM", &container.id])?;
    anyhow::ensure!(run.code != 0, "a stopped task was killed");
    check_contains!(run.err(), "not found");
    container.end()
}

fn delete_running(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let run = bed.ctr_run(["task", "delete", &container.id])?;
    anyhow::ensure!(run.code != 0, "a running task was deleted");
    check_eq!(container.status()?.as_deref(), Some("RUNNING"));
    check_eq!(container.output(["echo", "alive"])?, "alive");
    container.end()
}

fn delete_force(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    bed.ctr_run(["task", "delete", "--force", &container.id])?;
    eventually("the task is gone", Duration::from_secs(20), || {
        Ok(container.status()?.is_none().then_some(()))
    })?;
    container.remove()
}

fn again(bed: &Bed) -> Result<()> {
    let run = bed.container().named("the-same");
    for round in 0..2 {
        let container = run.sleeping()?;
        check_eq!(
            container.output([
                "sh",
                "-c",
                "cat /tmp/round 2>/dev/null; echo x > /tmp/round"
            ])?,
            "",
            "round {round}"
        );
        container.kill("KILL")?;
        container.becomes("STOPPED")?;
        container.delete_task()?;
        // The container, and its files, stay: a second task of it sees them.
        bed.ctr_run(["task", "start", "--detach", "--null-io", "the-same"])?
            .ok()?;
        check_eq!(
            container.output(["cat", "/tmp/round"])?,
            "x",
            "round {round}"
        );
        container.end()?;
    }
    Ok(())
}

fn events(bed: &Bed) -> Result<()> {
    let mut events = bed.events()?;
    let run = bed.container();
    run.run(["sh", "-c", "exit 3"])?.code_is(3)?;
    events.wait("/tasks/delete", |event| {
        event.text("container_id") == run.id()
    })?;
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ];
    check_eq!(events.topics_of(run.id()), expected);
    let exit = events.wait("/tasks/exit", |event| {
        event.text("container_id") == run.id()
    })?;
    check_eq!(exit.number("exit_status"), 3);
    check_eq!(exit.text("id"), run.id());
    let create = events.wait("/tasks/create", |_| true)?;
    let start = events.wait("/tasks/start", |_| true)?;
    anyhow::ensure!(start.number("pid") != 0, "no pid in {start:?}");
    check_eq!(create.number("pid"), start.number("pid"));
    check_eq!(exit.number("pid"), start.number("pid"));
    let delete = events.wait("/tasks/delete", |_| true)?;
    check_eq!(delete.number("exit_status"), 3);
    Ok(())
}

fn exec_events(bed: &Bed) -> Result<()> {
    let mut events = bed.events()?;
    let container = bed.container().sleeping()?;
    let mut command = bed.ctr();
    command.args([
        "task",
        "exec",
        "--exec-id",
        "extra",
        &container.id,
        "sh",
        "-c",
        "exit 4",
    ]);
    isopod_tests::process::run(&mut command, None, Duration::from_secs(60))?.code_is(4)?;
    let exit = events.wait("/tasks/exit", |event| event.text("id") == "extra")?;
    check_eq!(exit.number("exit_status"), 4);
    check_eq!(exit.text("container_id"), container.id);
    check_eq!(
        events.topics_of(&container.id),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit"
        ]
    );
    container.end()
}

fn many_execs(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let mut execs = Vec::new();
    for number in 0..12 {
        let script = format!("echo in {number}; cat; exit {number}");
        let mut command = container.exec_command(&[], ["sh", "-c", &script]);
        execs.push(isopod_tests::Background::start(&mut command)?);
    }
    for (number, exec) in execs.iter_mut().enumerate() {
        exec.line(Duration::from_secs(60), |line| {
            line == format!("in {number}")
        })?;
    }
    for (number, exec) in execs.iter_mut().enumerate() {
        exec.close_stdin();
        check_eq!(
            exec.finish(Duration::from_secs(60))?,
            i32::try_from(number)?
        );
    }
    container.end()
}

fn exec_dies(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let mut command = container.exec_command(&[], ["sh", "-c", "echo up; sleep 1000"]);
    let mut exec = isopod_tests::Background::start(&mut command)?;
    exec.line(Duration::from_secs(30), |line| line == "up")?;
    container.kill("KILL")?;
    check_eq!(exec.finish(Duration::from_secs(30))?, 137);
    container.becomes("STOPPED")?;
    container.end()
}

fn reaping(bed: &Bed) -> Result<()> {
    // PID 1 of the container is a shell that waits: what it inherits it reaps; in the guest nothing of
    // the runtime's may stay as a zombie either.
    let container = bed
        .container()
        .start(["sh", "-c", "while true; do sleep 0.1; done"])?;
    for _ in 0..5 {
        container
            .exec(["sh", "-c", "(sleep 0.1 &) ; (true &) ; exit 0"])?
            .ok()?;
    }
    eventually("no zombie is left", Duration::from_secs(20), || {
        // Processes come and go while they are looked at.
        let look = "grep -sh '^State:' /proc/[0-9]*/status; true";
        let states = container.output(["sh", "-c", look])?;
        Ok((!states.contains('Z')).then_some(()))
    })?;
    container.end()
}
