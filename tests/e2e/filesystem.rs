//! What a container sees of files: its root, its mounts, /proc, /sys, /dev.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use isopod_tests::{Bed, Case, check_contains, check_eq};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("root_is_the_image", root),
    Case::both("root_is_writable_and_private", private_root),
    Case::both("read_only_root", read_only_root),
    Case::both("bind_mount_read_write", bind_rw).smoke(),
    Case::both("bind_mount_read_only", bind_ro),
    Case::both("bind_mount_of_a_file", bind_file),
    Case::both("bind_mounts_stay", binds_stay),
    Case::both("bind_mount_sees_changes_of_the_host", bind_live),
    Case::both("tmpfs_mount", tmpfs),
    Case::both("owners_and_modes_are_kept", owners),
    Case::both("proc_is_masked", proc),
    Case::both("sys_is_read_only", sys),
    Case::both("dev_has_the_standard_devices", dev),
    Case::both("devices_beyond_are_refused", other_devices),
    Case::both("shared_memory_is_a_tmpfs", shm),
    Case::both("a_missing_bind_source_is_an_error", missing_source),
];

fn root(bed: &Bed) -> Result<()> {
    let out = bed
        .container()
        .run([
            "sh",
            "-c",
            "ls -d /bin/busybox /etc/passwd; readlink /bin/sh",
        ])?
        .ok()?
        .out();
    check_eq!(out, "/bin/busybox\n/etc/passwd\nbusybox\n");
    Ok(())
}

fn private_root(bed: &Bed) -> Result<()> {
    let (one, two) = (bed.container().sleeping()?, bed.container().sleeping()?);
    one.exec(["sh", "-c", "echo mine > /etc/mine && rm /etc/passwd"])?
        .ok()?;
    check_eq!(one.output(["cat", "/etc/mine"])?, "mine");
    two.exec(["sh", "-c", "test -e /etc/passwd && ! test -e /etc/mine"])?
        .ok()?;
    one.end()?;
    two.end()
}

fn read_only_root(bed: &Bed) -> Result<()> {
    let script = "echo x > /etc/new; echo code $?; echo y > /dev/shm/fine && cat /dev/shm/fine; rm /etc/passwd";
    let run = bed
        .container()
        .flags(["--read-only"])
        .run(["sh", "-c", script])?
        .code_is(1)?;
    check_contains!(run.err(), "Read-only file system");
    check_eq!(run.out(), "code 1\ny\n");
    Ok(())
}

fn bind_rw(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    fs::write(volume.join("from-host"), "hello\n")?;
    let script = "cat /data/from-host; mkdir /data/dir; echo from-guest > /data/dir/file; ls -a /data | wc -l";
    let run = bed
        .container()
        .bind(&volume, "/data", "rw")
        .run(["sh", "-c", script])?
        .ok()?;
    check_eq!(run.out(), "hello\n4\n");
    check_eq!(fs::read_to_string(volume.join("dir/file"))?, "from-guest\n");
    Ok(())
}

fn bind_ro(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    fs::write(volume.join("file"), "content\n")?;
    let script = "cat /data/file; echo x > /data/file; touch /data/new; rm -f /data/file; mount -o remount,rw /data; echo z > /data/file";
    let run = bed
        .container()
        .bind(&volume, "/data", "ro")
        .run(["sh", "-c", script])?;
    anyhow::ensure!(run.code != 0, "a read-only mount was written to");
    check_eq!(run.out(), "content\n");
    check_contains!(run.err(), "Read-only file system");
    check_eq!(fs::read_to_string(volume.join("file"))?, "content\n");
    check_eq!(fs::read_dir(&volume)?.count(), 1);
    Ok(())
}

fn bind_file(bed: &Bed) -> Result<()> {
    let file = bed.volume()?.join("hosts");
    fs::write(&file, "10.0.0.1 somewhere\n")?;
    // The target does not exist in the image: the runtime makes it.
    let run = bed.container().bind(&file, "/etc/hosts", "rw");
    let run = run
        .run(["sh", "-c", "cat /etc/hosts; echo more >> /etc/hosts"])?
        .ok()?;
    check_eq!(run.out(), "10.0.0.1 somewhere\n");
    check_eq!(fs::read_to_string(file)?, "10.0.0.1 somewhere\nmore\n");
    Ok(())
}

/// As Kubernetes has them, below a directory of the image that changes when a target is made in it; and what
/// the guest knows of that directory is old by the time that they are looked at.
fn binds_stay(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    let targets = ["/etc/hosts", "/etc/passwd", "/etc/config/file", "/bin/tool"];
    let mut run = bed.container();
    for (n, target) in targets.iter().enumerate() {
        let source = volume.join(n.to_string());
        fs::write(&source, format!("{n}\n"))?;
        run = run.bind(&source, target, "rw");
    }
    let container = run.bind(&volume, "/etc/volume", "rw").sleeping()?;
    let script = format!("cat {} /etc/volume/0", targets.join(" "));
    for _ in 0..2 {
        check_eq!(container.output(["sh", "-c", &script])?, "0\n1\n2\n3\n0");
        std::thread::sleep(Duration::from_secs(2));
        container.exec(["touch", "/etc/changed"])?.ok()?;
    }
    container
        .exec(["sh", "-c", "echo more >> /etc/hosts"])?
        .ok()?;
    check_eq!(fs::read_to_string(volume.join("0"))?, "0\nmore\n");
    container.end()
}

fn bind_live(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    let container = bed.container().bind(&volume, "/data", "rw").sleeping()?;
    container
        .exec(["sh", "-c", "! test -e /data/later"])?
        .ok()?;
    let script = "cat /data/later 2>/dev/null || echo none";
    let sees = |expected: &str| eventually(|| container.output(["sh", "-c", script]), expected);
    fs::write(volume.join("later"), "1\n")?;
    sees("1")?;
    fs::write(volume.join("later"), "22222\n")?;
    sees("22222")?;
    fs::remove_file(volume.join("later"))?;
    sees("none")?;
    container.end()
}

/// A guest may believe a name or a size for a second before it asks again.
fn eventually(mut look: impl FnMut() -> Result<String>, expected: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let got = look()?;
        // The look that began within the second may still be answered from the cache.
        if got == expected || began.elapsed() > Duration::from_secs(3) {
            check_eq!(got, expected);
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn tmpfs(bed: &Bed) -> Result<()> {
    let mount = "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1m:mode=700:nosuid";
    let script = "stat -f -c %T /scratch; stat -c %a /scratch; dd if=/dev/zero of=/scratch/f bs=64k count=40 2>&1 >/dev/null | grep -v records >&2; test $(wc -c < /scratch/f) -lt 2000000";
    let run = bed
        .container()
        .flags(["--mount", mount])
        .run(["sh", "-c", script])?
        .ok()?;
    check_eq!(run.out(), "tmpfs\n700\n");
    check_contains!(run.err(), "No space left on device");
    Ok(())
}

fn owners(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    fs::write(volume.join("theirs"), "")?;
    std::os::unix::fs::chown(volume.join("theirs"), Some(1234), Some(5678))?;
    let script = "stat -c '%u %g' /data/theirs; cd /data; echo > made; chown 42:43 made; chmod 4751 made; stat -c '%u %g %a' made";
    let run = bed
        .container()
        .bind(&volume, "/data", "rw")
        .run(["sh", "-c", script])?
        .ok()?;
    check_eq!(run.out(), "1234 5678\n42 43 4751\n");
    let made = fs::metadata(volume.join("made"))?;
    use std::os::unix::fs::MetadataExt;
    check_eq!(
        (made.uid(), made.gid(), made.mode() & 0o7777),
        (42, 43, 0o4751)
    );
    Ok(())
}

fn proc(bed: &Bed) -> Result<()> {
    let script = "cat /proc/timer_list | wc -c; echo 1 > /proc/sys/kernel/ctrl-alt-del; \
        grep -c '^proc /proc proc' /proc/mounts";
    let run = bed.container().run(["sh", "-c", script])?.ok()?;
    check_eq!(run.out(), "0\n1\n");
    check_eq!(
        run.err().matches("Read-only file system").count(),
        1,
        "refusals in {}",
        run.err()
    );
    Ok(())
}

fn sys(bed: &Bed) -> Result<()> {
    let script = "grep -c '^sysfs /sys sysfs ro' /proc/mounts; echo 1 > /sys/kernel/mm/ksm/run || mkdir /sys/x";
    let run = bed.container().run(["sh", "-c", script])?.code_is(1)?;
    check_eq!(run.out(), "1\n");
    Ok(())
}

fn dev(bed: &Bed) -> Result<()> {
    let script = "for n in null zero full random urandom tty; do test -c /dev/$n && stat -c '%t:%T %a' /dev/$n; done; \
        for n in fd stdin stdout stderr ptmx; do readlink /dev/$n; done; echo x > /dev/null; \
        head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo y > /dev/full";
    let run = bed.container().run(["sh", "-c", script])?.code_is(1)?;
    let expected = "1:3 666\n1:5 666\n1:7 666\n1:8 666\n1:9 666\n5:0 666\n\
        /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n4\n4\n";
    check_eq!(run.out(), expected);
    check_contains!(run.err(), "No space left on device");
    Ok(())
}

fn other_devices(bed: &Bed) -> Result<()> {
    // mknod is allowed, the use of what it made is not: the device controller refuses (1:11 is kmsg).
    let script = "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg";
    let run = bed.container().run(["sh", "-c", script])?.code_is(1)?;
    check_contains!(run.err(), "Operation not permitted");
    Ok(())
}

fn shm(bed: &Bed) -> Result<()> {
    let script = "for d in /dev /dev/shm; do stat -f -c %T $d; done; stat -c %a /dev/shm; test -d /dev/mqueue && ls /dev/pts";
    let run = bed.container().run(["sh", "-c", script])?.ok()?;
    check_eq!(run.out(), "tmpfs\ntmpfs\n1777\nptmx\n");
    Ok(())
}

fn missing_source(bed: &Bed) -> Result<()> {
    let missing = bed.dir.join("disk/does-not-exist");
    let run = bed
        .container()
        .bind(&missing, "/data", "rw")
        .run(["true"])?
        .code_is(1)?;
    check_contains!(run.err(), "does-not-exist");
    check_contains!(run.err().to_lowercase(), "no such file or directory");
    Ok(())
}
