//! Counters and histograms, in the OpenMetrics text format.

use crate::control::message::Listed;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What `/metrics` answers as `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counters of one session. They are plain atomics: the data path must not take a lock to count.
#[derive(Debug, Default)]
pub struct SessionMetrics {
    /// Ring requests completed, reads.
    pub ring_reads: AtomicU64,
    /// Ring requests completed, writes.
    pub ring_writes: AtomicU64,
    /// Bytes that rings read.
    pub ring_read_bytes: AtomicU64,
    /// Bytes that rings wrote.
    pub ring_write_bytes: AtomicU64,
    /// Ring requests answered with an error before any I/O was tried, by reason: see [`Rejected`].
    pub rejected: [AtomicU64; Rejected::COUNT],
    /// FUSE requests answered.
    pub fuse_requests: AtomicU64,
    /// Bytes read by FUSE requests (not by passthrough).
    pub fuse_read_bytes: AtomicU64,
    /// Bytes written by FUSE requests.
    pub fuse_write_bytes: AtomicU64,
    /// Time from claim to completion of a ring batch.
    pub ring_latency: Latency,
    /// Time from read to reply of a FUSE request.
    pub fuse_latency: Latency,
}

/// Why a ring request was refused without I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// Unknown Iov, outside it, or across a block boundary.
    Buffer,
    /// No such open file.
    File,
    /// Not allowed.
    Permission,
    /// The session is read-only.
    ReadOnly,
    /// The ring itself broke the protocol and was stopped.
    Fault,
}

impl Rejected {
    /// Number of reasons.
    pub const COUNT: usize = Rejected::NAMES.len();

    /// The reasons as labels, in the order of the variants.
    pub const NAMES: [&'static str; 5] = ["buffer", "file", "permission", "read_only", "fault"];
}

/// A histogram with one bucket per power of two microseconds: bucket `i` counts what took at most 2^i µs, the last one
/// everything longer than 4.2 s.
#[derive(Debug, Default)]
pub struct Latency {
    /// Observations per bucket.
    pub buckets: [AtomicU64; 24],
    /// Sum of all, in ns.
    pub sum_ns: AtomicU64,
}

impl Latency {
    /// Counts one observation.
    pub fn observe(&self, took: Duration) {
        let micros = took.as_nanos().div_ceil(1000).max(1);
        let bucket = micros.next_power_of_two().ilog2() as usize;
        self.buckets[bucket.min(self.buckets.len() - 1)].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }
}

/// One session at the time of a scrape.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its name (the label `session`), and what it has registered.
    pub listed: Listed,
    /// Its counters.
    pub metrics: Arc<SessionMetrics>,
}

/// All metrics of the daemon; made once, encoded at each scrape.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Metrics of the sessions that `sessions` lists at the time of the scrape.
    pub fn new(sessions: impl Fn() -> Vec<Sample> + Send + Sync + 'static) -> Metrics {
        let mut registry = Registry::with_prefix("usrbiod");
        registry.register_collector(Box::new(Sessions(Box::new(sessions))));
        Metrics { registry }
    }

    /// The text of `/metrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Only the writer can fail, and a String never does.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

struct Sessions(Box<dyn Fn() -> Vec<Sample> + Send + Sync>);

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

/// A metric that is one number a session and label.
struct Number {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    /// Name of a second label beside `session`, and its values.
    label: Option<(&'static str, &'static [&'static str])>,
    /// The number, for the value of the second label that has this index.
    value: fn(&Sample, usize) -> u64,
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn numbers() -> [Number; 10] {
    const DIRECTIONS: Option<(&str, &[&str])> = Some(("direction", &["read", "write"]));
    let counter =
        |name, help, unit, label, value| Number { name, help, unit, kind: MetricType::Counter, label, value };
    let gauge =
        |name, help, unit, value| Number { name, help, unit, kind: MetricType::Gauge, label: None, value };
    [
        counter("ring_requests", "Ring requests completed", None, DIRECTIONS, |s, write| {
            load(if write == 1 { &s.metrics.ring_writes } else { &s.metrics.ring_reads })
        }),
        counter("ring_io", "Bytes moved by rings", Some(Unit::Bytes), DIRECTIONS, |s, write| {
            load(if write == 1 { &s.metrics.ring_write_bytes } else { &s.metrics.ring_read_bytes })
        }),
        counter(
            "rejected_requests",
            "Ring requests refused before any I/O was tried",
            None,
            Some(("reason", &Rejected::NAMES)),
            |s, reason| load(&s.metrics.rejected[reason]),
        ),
        counter("fuse_requests", "FUSE requests answered", None, None, |s, _| load(&s.metrics.fuse_requests)),
        counter(
            "fuse_io",
            "Bytes moved by FUSE requests, without what the kernel passes through",
            Some(Unit::Bytes),
            DIRECTIONS,
            |s, write| {
                load(if write == 1 { &s.metrics.fuse_write_bytes } else { &s.metrics.fuse_read_bytes })
            },
        ),
        gauge("rings", "Rings registered", None, |s, _| s.listed.rings),
        gauge("iovs", "Iovs registered", None, |s, _| s.listed.iovs),
        gauge("iov_size", "Bytes of the Iovs that are registered", Some(Unit::Bytes), |s, _| {
            s.listed.iov_bytes
        }),
        gauge("hung_requests", "Requests whose storage has not answered for seconds", None, |s, _| {
            s.listed.hung
        }),
        gauge("oldest_hung_request", "Age of the oldest of these", Some(Unit::Seconds), |s, _| {
            s.listed.hung_seconds
        }),
    ]
}

impl Collector for Sessions {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let samples = (self.0)();
        encoder
            .encode_descriptor("build", "Version of the daemon", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        encoder
            .encode_descriptor("sessions", "Sessions attached", None, MetricType::Gauge)?
            .encode_gauge(&(samples.len() as i64))?;
        for number in numbers() {
            let metric =
                encoder.encode_descriptor(number.name, number.help, number.unit.as_ref(), number.kind)?;
            encode_number(metric, &number, &samples)?;
        }
        let help = "Time from taking a request (rings: a batch) to its reply";
        let metric = encoder.encode_descriptor(
            "request_duration",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        encode_latencies(metric, &samples)
    }
}

fn encode_number(mut metric: MetricEncoder, number: &Number, samples: &[Sample]) -> fmt::Result {
    let (label, values) = number.label.unwrap_or(("", &[""]));
    for sample in samples {
        for (index, value) in values.iter().enumerate() {
            let labels = [("session", sample.listed.session.as_str()), (label, *value)];
            let labels = &labels[..if label.is_empty() { 1 } else { 2 }];
            let count = (number.value)(sample, index);
            let mut metric = metric.encode_family(&labels)?;
            match number.kind {
                MetricType::Gauge => metric.encode_gauge(&i64::try_from(count).unwrap_or(i64::MAX))?,
                _ => metric.encode_counter::<NoLabelSet, _, u64>(&count, None)?,
            }
        }
    }
    Ok(())
}

fn encode_latencies(mut metric: MetricEncoder, samples: &[Sample]) -> fmt::Result {
    for sample in samples {
        for (kind, latency) in
            [("ring", &sample.metrics.ring_latency), ("fuse", &sample.metrics.fuse_latency)]
        {
            let buckets: Vec<(f64, u64)> = latency
                .buckets
                .iter()
                .enumerate()
                .map(|(i, count)| (upper_bound(i, latency.buckets.len()), load(count)))
                .collect();
            let sum = load(&latency.sum_ns) as f64 / 1e9;
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric
                .encode_family(&[("session", sample.listed.session.as_str()), ("kind", kind)])?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}

/// Seconds that bucket `index` reaches to.
fn upper_bound(index: usize, buckets: usize) -> f64 {
    if index + 1 == buckets { f64::INFINITY } else { (1_u64 << index) as f64 / 1e6 }
}

#[cfg(test)]
impl Sample {
    pub(crate) fn of_tests(session: String) -> Sample {
        let listed = Listed {
            session,
            cluster: "test".to_owned(),
            mount_point: "/mnt".into(),
            read_only: false,
            passthrough: true,
            rings: 1,
            iovs: 2,
            iov_bytes: 4096,
            hung: 3,
            hung_seconds: 17,
        };
        Sample { listed, metrics: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of_one_session() -> String {
        let metrics = Arc::new(SessionMetrics::default());
        metrics.ring_reads.store(7, Ordering::Relaxed);
        metrics.rejected[Rejected::Permission as usize].store(2, Ordering::Relaxed);
        metrics.ring_latency.observe(Duration::from_micros(3));
        metrics.ring_latency.observe(Duration::from_secs(9));
        Metrics::new(move || {
            let of_tests = Sample::of_tests("pod-a".to_owned());
            vec![Sample { metrics: metrics.clone(), ..of_tests }]
        })
        .text()
    }

    #[test]
    fn every_sample_belongs_to_a_described_metric_with_a_proper_name() {
        let text = text_of_one_session();
        assert!(text.ends_with("# EOF\n"));
        let names = |key: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|l| l.strip_prefix(key));
            lines.map(|l| l.split(' ').next().unwrap().to_owned()).collect()
        };
        let (types, helps) = (names("# TYPE "), names("# HELP "));
        assert_eq!(types, helps);
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(name.starts_with("usrbiod_"), "{line}");
            assert!(types.iter().any(|t| name.starts_with(t.as_str())), "{line}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        let counters = text.lines().filter(|l| l.ends_with(" counter"));
        for line in counters {
            let name = line.split(' ').nth(2).unwrap();
            let samples = text.lines().filter(|l| l.starts_with(&format!("{name}_total{{"))).count();
            assert!(samples > 0, "{name}");
        }
    }

    #[test]
    fn numbers_appear_under_their_labels() {
        let text = text_of_one_session();
        for line in [
            r#"usrbiod_ring_requests_total{session="pod-a",direction="read"} 7"#,
            r#"usrbiod_rejected_requests_total{session="pod-a",reason="permission"} 2"#,
            r#"usrbiod_iov_size_bytes{session="pod-a"} 4096"#,
            r#"usrbiod_hung_requests{session="pod-a"} 3"#,
            r#"usrbiod_oldest_hung_request_seconds{session="pod-a"} 17"#,
            r#"usrbiod_request_duration_seconds_count{session="pod-a",kind="ring"} 2"#,
            r#"usrbiod_request_duration_seconds_bucket{le="0.000004",session="pod-a",kind="ring"} 1"#,
            r#"usrbiod_request_duration_seconds_bucket{le="+Inf",session="pod-a",kind="ring"} 2"#,
            "usrbiod_sessions 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn an_observation_falls_into_the_first_bucket_that_reaches_it() {
        let latency = Latency::default();
        let bucket_of = |took: Duration| {
            let before: Vec<u64> = latency.buckets.iter().map(load).collect();
            latency.observe(took);
            before.iter().zip(&latency.buckets).position(|(b, a)| *b != load(a)).unwrap()
        };
        let micros = Duration::from_micros;
        let took =
            [Duration::ZERO, micros(1), Duration::from_nanos(1001), micros(2), micros(4), micros(1 << 22)];
        assert_eq!(took.map(bucket_of), [0, 0, 1, 1, 2, 22]);
        assert_eq!(bucket_of(Duration::from_secs(1000)), 23);
    }
}
