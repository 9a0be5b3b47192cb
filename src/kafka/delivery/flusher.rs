//! When librdkafka sends the records that it holds.
//!
//! A linger of zero sends each record at once, which is right while few come. Under a backlog it
//! is wasteful: the idempotent producer sends a partition nothing more while five or more
//! *records* are in flight (`rktp_msgs_inflight`), so that there are always records whose linger
//! is over and that must not go yet, and librdkafka's thread calls poll() without a time-out until
//! they may. That was half of capture's CPU time, on cores that the walsender and the broker need.
//!
//! So the linger is [`LINGER`] here, and a thread of ours ends it: while `rd_kafka_flush` is
//! called, librdkafka takes every linger as over. Of few records the call lasts until all are
//! delivered. Of many, librdkafka sends by itself what fills a request, and a short call every
//! [`PULSE_EVERY`] sends the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_flush;
use rdkafka::producer::{Producer, ThreadedProducer};
use rdkafka::types::RDKafkaRespErr;

use super::Context;

/// Far longer than any record waits; long enough that under a backlog none has waited for it.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// More records than this in a millisecond fill requests by themselves within a few of them.
const MANY_PER_MS: u128 = 20;

/// As many on their way are sent by size too, or there is no room for more.
const MANY_ON_THE_WAY: i32 = 2_000;

/// How long many records may wait for others to share their request, at most.
const PULSE_EVERY: Duration = Duration::from_millis(20);

/// Long enough for librdkafka's thread to wake up meanwhile.
const PULSE: Duration = Duration::from_millis(1);

/// Between two looks at how many records come.
const LOOK: Duration = Duration::from_millis(2);

/// Between two looks while nothing comes and nothing is delivered: Kafka is away.
const LOOK_MAX: Duration = Duration::from_millis(64);

struct Shared {
    /// Records given to librdkafka since the start.
    handed: AtomicU64,
    asleep: AtomicBool,
    stop: AtomicBool,
}

/// Ends the linger of a producer's records.
pub(super) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn start(producer: Arc<ThreadedProducer<Context>>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            handed: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let its = Arc::clone(&shared);
        let builder = thread::Builder::new().name("kafka-flush".to_owned());
        let thread = builder.spawn(move || run(&its, &producer))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says that librdkafka has one more record.
    pub(super) fn handed(&self) {
        self.shared.handed.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            self.shared.asleep.store(false, Ordering::SeqCst);
            thread.thread().unpark();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It panicked, and said so: nothing is left to end.
            drop(thread.join());
        }
    }
}

fn run(shared: &Shared, producer: &ThreadedProducer<Context>) {
    let (mut seen, mut looked, mut pulsed) = (0, Instant::now(), Instant::now());
    let mut look = LOOK;
    while !shared.stop.load(Ordering::SeqCst) {
        let (handed, now) = (shared.handed.load(Ordering::SeqCst), Instant::now());
        let (new, took) = (u128::from(handed - seen), (now - looked).as_millis().max(1));
        (seen, looked) = (handed, now);
        let many = MANY_PER_MS * took < new || MANY_ON_THE_WAY <= producer.in_flight_count();
        if many {
            look = LOOK;
            if pulsed.elapsed() < PULSE_EVERY {
                thread::park_timeout(LOOK);
            } else {
                flush(producer, PULSE);
                pulsed = Instant::now();
            }
            continue;
        }
        look = if new == 0 { LOOK_MAX.min(look * 2) } else { LOOK };
        if flush(producer, look) {
            sleep_until_handed(shared, handed);
        }
    }
}

/// Sleeps unless more than `handed` records were given. Who gives one wakes us if we said before
/// that we sleep; if we said it after, we see the record here.
fn sleep_until_handed(shared: &Shared, handed: u64) {
    shared.asleep.store(true, Ordering::SeqCst);
    while shared.asleep.load(Ordering::SeqCst)
        && shared.handed.load(Ordering::SeqCst) == handed
        && !shared.stop.load(Ordering::SeqCst)
    {
        thread::park();
    }
    shared.asleep.store(false, Ordering::SeqCst);
}

/// Whether everything was delivered, or failed, within `limit`.
#[expect(unsafe_code, reason = "the crate's own flush() calls this with a limit of zero only")]
fn flush(producer: &ThreadedProducer<Context>, limit: Duration) -> bool {
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer is that of a client which lives as long as `producer`, and librdkafka's
    // functions may be called from any thread. Reports are events here, which are served by the
    // producer's own thread: the call only waits.
    let said = unsafe { rd_kafka_flush(producer.client().native_ptr(), limit_ms) };
    said == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}
