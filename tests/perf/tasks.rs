//! Calls on a running pod, asked of the shims directly: nothing of a client's own time is in a figure.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use isopod_tests::{
    Bed, Runtime,
    shim::{Caller, Empty, Shim, api},
    spec::spec,
};

use crate::{start::median, table::Row};

const ROUNDS: usize = 9;
/// For both. A shim of runc's (containerd 1.6) starts execs under the lock that its reports of exits need too,
/// and hears of `runc exec`'s own exit after those: each start that meets an exit takes until a timeout of a
/// second, so that a hundred are more than a client waits.
const PARALLEL: usize = 20;
/// For isopod alone.
const MANY: usize = 100;
/// No further round of a measurement begins after this.
const ENOUGH: Duration = Duration::from_secs(60);

/// A shim with a container that sleeps.
struct Pod<'b> {
    bed: &'b Bed,
    id: String,
    shim: Shim<'b>,
}

/// Answers milliseconds.
type Act<'b> = fn(&Pod<'b>) -> Result<f64>;

/// Rounds alternate between the runtimes, so that a busy moment of the machine meets both.
pub fn measure(bed: &Bed) -> Result<Vec<Row>> {
    let pods = [Runtime::Isopod, Runtime::Runc].map(|runtime| Pod::start(bed, runtime));
    let [ours, theirs] = pods;
    let pods = [ours?, theirs?];
    let acts: [(&str, usize, usize, Act<'_>); 5] = [
        ("container in a running pod", ROUNDS, 2, Pod::container),
        ("exec", ROUNDS, 2, Pod::exec),
        ("20 execs at once", 3, 2, |pod| pod.execs(PARALLEL)),
        ("100 execs at once", 3, 1, |pod| pod.execs(MANY)),
        ("stats", ROUNDS, 2, Pod::stats),
    ];
    let mut rows = Vec::new();
    for (name, rounds, runtimes, act) in acts {
        eprintln!("  {name} ...");
        let mut figures = [Vec::new(), Vec::new()];
        let began = Instant::now();
        // The first fills caches.
        for round in 0..=rounds {
            for (pod, figures) in pods.iter().zip(&mut figures).take(runtimes) {
                let took = act(pod).with_context(|| format!("{name}, {}", pod.id))?;
                if round > 0 {
                    figures.push(took);
                }
            }
            if round > 0 && began.elapsed() > ENOUGH {
                break;
            }
        }
        let [ours, theirs] = figures;
        let row = Row::new(name, "ms", median(ours));
        rows.push(if theirs.is_empty() {
            row
        } else {
            row.against("runc", median(theirs))
        });
    }
    for pod in pods {
        pod.shim.caller()?.end(&pod.id)?;
        pod.shim.shut_down(&pod.id)?;
    }
    Ok(rows)
}

/// Milliseconds.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

impl<'b> Pod<'b> {
    fn start(bed: &'b Bed, runtime: Runtime) -> Result<Self> {
        let id = runtime.name().to_owned();
        let spec = bundle(bed, &id, &id)?;
        let shim = Shim::of(bed, runtime, &id, &spec)?;
        let mut caller = shim.caller()?;
        caller.ask::<Empty>("Create", &shim.creation(&id, &spec)?)?;
        caller.start(&id, "")?;
        Ok(Self { bed, id, shim })
    }

    /// Create and Start.
    fn container(&self) -> Result<f64> {
        let id = format!("{}{}", self.id, self.bed.next());
        let creation = self.shim.creation(&id, &bundle(self.bed, &self.id, &id)?)?;
        let mut caller = self.shim.caller()?;
        let took = timed(|| {
            caller.ask::<Empty>("Create", &creation)?;
            caller.start(&id, "")
        })?;
        caller.end(&id)?;
        Ok(took)
    }

    /// Exec, Start and Wait of `true`.
    fn exec(&self) -> Result<f64> {
        let mut caller = self.shim.caller()?;
        let name = format!("e{}", self.bed.next());
        let took = timed(|| run(&mut caller, &self.id, &name))?;
        caller.delete(&self.id, &name)?;
        Ok(took)
    }

    /// The same many times at once, each on a connection of its own.
    fn execs(&self, count: usize) -> Result<f64> {
        let callers = (0..count).map(|_| self.shim.caller());
        let callers: Vec<Caller> = callers.collect::<Result<_>>()?;
        timed(|| {
            let running = callers.into_iter().map(|mut caller| {
                let (id, name) = (self.id.clone(), format!("e{}", self.bed.next()));
                thread::spawn(move || {
                    run(&mut caller, &id, &name)?;
                    caller.delete(&id, &name).map(drop)
                })
            });
            let running: Vec<_> = running.collect();
            for one in running {
                let done = one.join();
                done.map_err(|_| anyhow::anyhow!("a thread panicked"))?
                    .context("one of the execs")?;
            }
            Ok(())
        })
    }

    fn stats(&self) -> Result<f64> {
        let mut caller = self.shim.caller()?;
        let request = api::StatsRequest {
            id: self.id.clone(),
            ..api::StatsRequest::default()
        };
        timed(|| caller.ask::<Empty>("Stats", &request).map(drop))
    }
}

fn run(caller: &mut Caller, id: &str, name: &str) -> Result<()> {
    caller.exec(id, name, &["true"])?;
    caller.start(id, name)?;
    let code = caller.wait(id, name)?;
    anyhow::ensure!(code == 0, "{name} ended with {code}");
    Ok(())
}

/// A container of the pod that sleeps.
fn bundle(bed: &Bed, pod: &str, id: &str) -> Result<serde_json::Value> {
    let rootfs = bed.dir.join("disk/tasks");
    if !rootfs.exists() {
        bed.unpack(&rootfs)?;
    }
    let cgroup = format!("/{}/{id}", bed.namespace);
    let mut spec = spec(&rootfs, &cgroup, &["sleep", "100000"]);
    let kind = if pod == id { "sandbox" } else { "container" };
    spec["annotations"] = serde_json::json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": pod,
    });
    Ok(spec)
}
