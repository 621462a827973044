//! The fake machine boots with one processor and 512 MiB, and can grow to four and 2560.

use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    fake::FakePod,
    tests::{id, request, with_pod},
};
use crate::Error;

async fn create(pod: &FakePod, id: &str, limits: &Value) -> Result<(), Error> {
    let mut request = request(pod, id);
    request.stdio.stdout = false;
    let mut spec = serde_json::to_value(&request.spec).unwrap();
    spec["linux"]["resources"] = limits.clone();
    request.spec = serde_json::from_value(spec).unwrap();
    pod.sandbox.create(request).await.map(drop)
}

async fn update(pod: &FakePod, id: &str, limits: Value) -> Result<(), Error> {
    let resources: LinuxResources = serde_json::from_value(limits).unwrap();
    pod.sandbox.update(id, resources).await
}

fn cpus(cpus: i64) -> Value {
    json!({"cpu": {"quota": cpus * 100_000, "period": 100_000}})
}

fn heard(pod: &FakePod) -> Vec<String> {
    pod.agent.heard.lock().unwrap().clone()
}

/// Waits for what comes after an answer has been given.
async fn hears(pod: &FakePod, expected: &[&str]) {
    let heard = async {
        while heard(pod) != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), heard)
        .await
        .is_err()
    {
        assert_eq!(self::heard(pod), expected);
    }
}

fn refusal(message: &str) -> ttrpc::Status {
    ttrpc::get_status(ttrpc::Code::INTERNAL, message)
}

#[test]
fn a_machine_that_is_large_enough_is_left_alone() {
    with_pod(|pod| async {
        create(&pod, "c1", &json!({})).await.unwrap();
        create(&pod, "c2", &cpus(1)).await.unwrap();
        update(&pod, "c2", json!({"pids": {"limit": 5}}))
            .await
            .unwrap();
        hears(&pod, &["create c1", "create c2", "update c2"]).await;
        pod
    });
}

#[test]
fn it_grows_before_a_container_and_shrinks_after_it() {
    with_pod(|pod| async {
        create(&pod, "c1", &cpus(1)).await.unwrap();
        let mut both = cpus(2);
        both["memory"] = json!({"limit": 1 << 30});
        create(&pod, "c2", &both).await.unwrap();
        let grown = ["create c1", "grant 3", "size 3 +1024 -1024", "create c2"];
        hears(&pod, &grown).await;
        pod.sandbox.kill(id("c2", ""), 9, true).await.unwrap();
        pod.sandbox.wait(id("c2", "")).await.unwrap();
        pod.sandbox.delete(id("c2", "")).await.unwrap();
        let after = ["kill c2 9", "delete c2", "size 1 +0 -2048", "grant 1"];
        hears(&pod, &[&grown[..], &after].concat()).await;
        pod
    });
}

#[test]
fn an_update_grows_it_first_and_shrinks_it_last() {
    with_pod(|pod| async {
        create(&pod, "c1", &json!({})).await.unwrap();
        update(&pod, "c1", cpus(3)).await.unwrap();
        let mut expected = vec!["create c1", "grant 3", "size 3 +0 -0", "update c1"];
        hears(&pod, &expected).await;
        update(&pod, "c1", cpus(2)).await.unwrap();
        expected.extend(["update c1", "size 2 +0 -0", "grant 2"]);
        hears(&pod, &expected).await;
        // More of the one and less of the other.
        let mut other = cpus(1);
        other["memory"] = json!({"limit": 100 << 20});
        update(&pod, "c1", other).await.unwrap();
        expected.extend(["size 2 +100 -1948", "update c1"]);
        expected.extend(["size 1 +0 -0", "grant 1"]);
        hears(&pod, &expected).await;
        pod
    });
}

#[test]
fn a_limit_above_the_most_is_no_error() {
    with_pod(|pod| async {
        let mut much = cpus(100);
        much["memory"] = json!({"limit": i64::MAX});
        create(&pod, "c1", &much).await.unwrap();
        hears(&pod, &["grant 4", "size 4 +2048 -0", "create c1"]).await;
        pod
    });
}

#[rstest]
#[case::fewer_than_wanted(Ok(2), "it has 2 CPUs", &["grant 1"])]
// Nobody knows what such a guest uses.
#[case::an_error(Err(refusal("no such CPU")), "no such CPU", &[])]
fn a_machine_that_does_not_grow_fails_who_needs_it(
    #[case] processors: Result<u32, ttrpc::Status>,
    #[case] why: &'static str,
    #[case] taken: &'static [&'static str],
) {
    with_pod(move |pod| async move {
        *pod.agent.processors.lock().unwrap() = processors;
        let error = create(&pod, "c1", &cpus(3)).await.unwrap_err().to_string();
        assert!(
            error.contains("give the virtual machine 3 CPUs and 512 MiB") && error.contains(why),
            "{error}"
        );
        assert!(!pod.dir.join("shared/c1").exists());
        // What was perhaps grown is taken back, once.
        let mut expected = vec!["grant 3", "size 3 +0 -0", "size 1 +0 -0"];
        expected.extend(taken);
        hears(&pod, &expected).await;
        create(&pod, "c1", &cpus(1)).await.unwrap();
        expected.push("create c1");
        hears(&pod, &expected).await;
        pod
    });
}

#[test]
fn a_refused_update_leaves_the_size() {
    with_pod(|pod| async {
        create(&pod, "c1", &cpus(1)).await.unwrap();
        *pod.agent.refusal.lock().unwrap() = Some(refusal("no"));
        let error = update(&pod, "c1", cpus(4)).await.unwrap_err().to_string();
        assert!(error.contains("no"), "{error}");
        let grown = ["create c1", "grant 4", "size 4 +0 -0", "update c1"];
        let shrunk = ["size 1 +0 -0", "grant 1"];
        hears(&pod, &[&grown[..], &shrunk].concat()).await;
        pod
    });
}

#[test]
fn an_update_of_nobody_grows_nothing() {
    with_pod(|pod| async {
        let error = update(&pod, "c1", cpus(4)).await.unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error}");
        create(&pod, "c1", &json!({})).await.unwrap();
        hears(&pod, &["create c1"]).await;
        pod
    });
}

#[test]
fn a_machine_that_grows_may_end() {
    with_pod(|pod| async {
        *pod.agent.processors.lock().unwrap() = Err(refusal("too late"));
        pod.machine.send_replace(Some("killed".into()));
        let error = create(&pod, "c1", &cpus(3)).await.unwrap_err();
        assert!(matches!(error, Error::VmGone(_)), "{error}");
        pod
    });
}

#[test]
fn processors_that_are_not_granted_are_not_brought_online() {
    with_pod(|pod| async {
        *pod.agent.granted.lock().unwrap() = Some("it is too late".into());
        let error = create(&pod, "c1", &cpus(3)).await.unwrap_err().to_string();
        assert!(
            error.contains("3 processors") && error.contains("it is too late"),
            "{error}"
        );
        *pod.agent.granted.lock().unwrap() = None;
        // The guest has one and is asked for no more than that.
        let mut expected = vec!["grant 3", "size 1 +0 -0", "grant 1"];
        hears(&pod, &expected).await;
        create(&pod, "c1", &cpus(2)).await.unwrap();
        expected.extend(["grant 2", "size 2 +0 -0", "create c1"]);
        hears(&pod, &expected).await;
        pod
    });
}

#[test]
fn a_processor_that_the_guest_keeps_is_not_taken_from_it() {
    with_pod(|pod| async {
        create(&pod, "c1", &cpus(4)).await.unwrap();
        let mut expected = vec!["grant 4", "size 4 +0 -0", "create c1"];
        *pod.agent.kept.lock().unwrap() = 3;
        update(&pod, "c1", cpus(1)).await.unwrap();
        expected.extend(["update c1", "size 1 +0 -0", "grant 3"]);
        hears(&pod, &expected).await;
        // It has what is wanted next: no processor stands still in between.
        update(&pod, "c1", cpus(2)).await.unwrap();
        expected.extend(["size 2 +0 -0", "update c1"]);
        hears(&pod, &expected).await;
        // One that says more than it may have gets no more.
        *pod.agent.kept.lock().unwrap() = 64;
        update(&pod, "c1", cpus(1)).await.unwrap();
        expected.extend(["update c1", "size 1 +0 -0", "grant 3"]);
        hears(&pod, &expected).await;
        pod
    });
}
