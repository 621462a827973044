//! containerd's events of a bed, in order.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Background, Bed};

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Such as `/tasks/exit`.
    pub topic: String,
    /// The message, as JSON.
    pub content: Value,
}

impl Event {
    /// A field of the message as text; empty when it is not there.
    pub fn text(&self, key: &str) -> &str {
        self.content
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// A field of the message as a number; protobuf leaves zeros out.
    pub fn number(&self, key: &str) -> u64 {
        self.content.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    /// `2026-01-02 03:04:05.6 +0000 UTC namespace /topic {json}`.
    fn parse(line: &str) -> Option<Self> {
        let (head, content) = line.split_once(" {")?;
        let topic = head
            .rsplit(' ')
            .next()
            .filter(|topic| topic.starts_with('/'))?;
        let content = serde_json::from_str(&format!("{{{content}")).ok()?;
        Some(Self {
            topic: topic.to_owned(),
            content,
        })
    }
}

/// Follows the events from a moment on.
pub struct Events(Background);

impl Events {
    /// Makes sure that the follower is connected before it answers: a harmless event must arrive.
    pub(crate) fn follow(mut background: Background, bed: &Bed) -> Result<Self> {
        let image = crate::bed::IMAGE;
        crate::process::eventually("events are followed", Duration::from_secs(10), || {
            bed.ctr_run(["images", "label", image, &format!("tick={}", bed.next())])?
                .ok()?;
            Ok(background
                .line(Duration::from_millis(200), |line| line.contains("/images/"))
                .ok())
        })?;
        background.forget();
        Ok(Self(background))
    }

    /// The first event, past or to come, of this topic that satisfies `wanted`.
    pub fn wait(&mut self, topic: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        self.wait_within(Duration::from_secs(30), topic, wanted)
    }

    /// The same with a limit of the caller's.
    pub fn wait_within(
        &mut self,
        limit: Duration,
        topic: &str,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let parsed = |line: &str| Event::parse(line).filter(|e| e.topic == topic && wanted(e));
        let line = self.0.line(limit, |line| parsed(line).is_some());
        let line = line.with_context(|| format!("event {topic}"))?;
        parsed(&line).context("the line is an event")
    }

    /// The topics so far that tell of this container, in order.
    pub fn topics_of(&mut self, container: &str) -> Vec<String> {
        let events = self.0.lines().iter().filter_map(|line| Event::parse(line));
        events
            .filter(|event| {
                event.topic.starts_with("/tasks/") && event.text("container_id") == container
            })
            .map(|event| event.topic)
            .collect()
    }

    /// The events so far.
    pub fn all(&mut self) -> Vec<Event> {
        self.0
            .lines()
            .iter()
            .filter_map(|line| Event::parse(line))
            .collect()
    }
}
