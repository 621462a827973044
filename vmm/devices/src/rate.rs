//! Limits on how much a device does in a second.
//!
//! Token buckets that may go into debt: a request is admitted while there is any token, whatever it
//! will cost, and the next one waits until the debt is paid. So a request's size need not be known
//! before it is taken from the ring, and none is too large to ever be served.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a device may do at most. Zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Requests or packets per second.
    pub operations_per_second: u64,
}

/// One bucket, which holds a tenth of a second's tokens.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_second: u64,
    tokens: i128,
    filled: Instant,
}

/// How much of a second a bucket holds: long enough not to fire timers for every packet, short enough
/// not to be felt.
const BURST_PARTS: u64 = 10;
const NANOS: i128 = 1_000_000_000;

impl Bucket {
    fn new(per_second: u64, now: Instant) -> Option<Self> {
        (per_second > 0).then(|| Self {
            per_second,
            tokens: Self::depth(per_second),
            filled: now,
        })
    }

    /// In billionths of a token, so that nothing is lost to rounding.
    fn depth(per_second: u64) -> i128 {
        i128::from((per_second / BURST_PARTS).max(1)) * NANOS
    }

    /// How long until a token is there.
    fn wait(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        // A century at 2^64 tokens a second stays far below 2^127.
        let earned = (passed.as_nanos().min(1 << 61) as i128) * i128::from(self.per_second);
        self.tokens = (self.tokens + earned).min(Self::depth(self.per_second));
        if self.tokens >= NANOS {
            return Duration::ZERO;
        }
        let missing = NANOS - self.tokens;
        let nanos = missing.div_euclid(i128::from(self.per_second)) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn charge(&mut self, tokens: u64) {
        // Bounded by what one request can cost, as the next is admitted only out of debt.
        self.tokens -= i128::from(tokens) * NANOS;
    }
}

/// Both limits of one device.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// With full buckets.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        Self {
            bytes: Bucket::new(limit.bytes_per_second, now),
            operations: Bucket::new(limit.operations_per_second, now),
        }
    }

    /// How long to wait before the next request, if at all.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let buckets = [&mut self.bytes, &mut self.operations];
        let waits = buckets.into_iter().flatten().map(|b| b.wait(now));
        waits.max().filter(|wait| !wait.is_zero())
    }

    /// A request was served that moved this many bytes.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.charge(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Serves requests of these sizes as soon as each is admitted; the time that it took.
    fn serve(limit: RateLimit, sizes: &[u64]) -> Duration {
        let start = Instant::now();
        let mut now = start;
        let mut limiter = Limiter::new(limit, now);
        for size in sizes {
            while let Some(wait) = limiter.wait(now) {
                now += wait;
            }
            limiter.charge(*size);
        }
        now - start
    }

    #[test]
    fn no_limit_never_waits() {
        assert_eq!(
            serve(RateLimit::default(), &[u64::MAX; 100]),
            Duration::ZERO
        );
    }

    #[test]
    fn operations_are_spread_over_time() {
        let limit = RateLimit {
            operations_per_second: 100,
            ..RateLimit::default()
        };
        // 10 are in the bucket, 100 come each second.
        let took = serve(limit, &[1; 210]);
        assert!((1.98..2.02).contains(&took.as_secs_f64()), "{took:?}");
    }

    #[test]
    fn a_request_larger_than_the_bucket_is_paid_afterwards() {
        let limit = RateLimit {
            bytes_per_second: 1000,
            ..RateLimit::default()
        };
        let took = serve(limit, &[5000, 1]);
        assert!((4.8..5.1).contains(&took.as_secs_f64()), "{took:?}");
    }

    proptest! {
        #[test]
        fn the_rate_is_kept_in_the_long_run(
            per_second in 1u64..1 << 40,
            sizes in proptest::collection::vec(0u64..1 << 24, 1..50),
        ) {
            let limit = RateLimit { bytes_per_second: per_second, ..RateLimit::default() };
            let took = serve(limit, &sizes).as_secs_f64();
            // The last is admitted in advance, and the bucket began full.
            let paid: u64 = sizes[..sizes.len() - 1].iter().sum();
            let least = (paid as f64 - (per_second as f64 / 10.0).max(1.0)) / per_second as f64;
            let most = (paid as f64 + 1.0) / per_second as f64 + 0.001;
            prop_assert!(took >= least - 0.001 && took <= most, "{least} {took} {most}");
        }
    }
}
