//! A producer that is replaced once it has given a record up.
//!
//! One that has lost its cluster ([`super::lost_cluster`]) never sends again, and after a fatal error
//! none takes a record any more. Nothing rests on the order of what goes this way, so a new producer
//! is the simplest cure of both.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::error::KafkaError;

/// Says of one producer that another is to take its place.
#[derive(Clone, Default)]
pub struct GaveUp(Arc<AtomicBool>);

impl GaveUp {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A producer; it stays as long as somebody has it.
#[derive(Clone)]
pub struct Current<P> {
    pub producer: P,
    pub gave_up: GaveUp,
}

type Make<P> = dyn Fn(GaveUp) -> Result<P, KafkaError> + Send + Sync;

/// See the module.
pub struct Renewed<P> {
    of: &'static str,
    make: Box<Make<P>>,
    current: Mutex<Current<P>>,
}

impl<P: Clone> Renewed<P> {
    /// `of`: whose producer it is, for the log.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn new(
        of: &'static str,
        make: impl Fn(GaveUp) -> Result<P, KafkaError> + Send + Sync + 'static,
    ) -> Result<Self, KafkaError> {
        let current = Mutex::new(made(&make)?);
        Ok(Self { of, make: Box::new(make), current })
    }

    /// The producer, a new one if the last one has given up.
    pub fn current(&self) -> Current<P> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.gave_up.0.load(Ordering::Relaxed) {
            tracing::debug!("kafka's client of {} is started anew", self.of);
            match made(&self.make) {
                Ok(new) => *current = new,
                Err(error) => tracing::error!(%error, "it does not start"),
            }
        }
        current.clone()
    }
}

fn made<P>(make: impl Fn(GaveUp) -> Result<P, KafkaError>) -> Result<Current<P>, KafkaError> {
    let gave_up = GaveUp::default();
    Ok(Current { producer: make(gave_up.clone())?, gave_up })
}
