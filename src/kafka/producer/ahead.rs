//! Topics of published tables are seen to beside the stream, so that the first change of a table
//! need not wait for its own.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::causes::with_causes;
use crate::config::KafkaConfig;
use crate::copies::MadeTopics;
use crate::kafka::producer::ProducerSession;
use crate::kafka::topics::{self, WantedTopic};

/// Topics seen to at a time, so that the first tables need not wait for the last.
const AT_ONCE: usize = 200;

/// Topics that are made before anything has changed. A broker pays for each partition with memory
/// and open files, and of thousands of tables most are never written to: theirs are made with the
/// first change.
pub const AHEAD_MAX: usize = 1000;

/// Sees to the topics of the published tables while the stream goes on.
pub(super) struct Ahead {
    config: KafkaConfig,
    made: MadeTopics,
    waiting: Vec<WantedTopic>,
    task: JoinSet<Vec<Arc<str>>>,
}

impl Ahead {
    pub(super) fn new(session: &mut ProducerSession) -> Self {
        let mut waiting = std::mem::take(&mut session.expected);
        waiting.truncate(AHEAD_MAX);
        let (config, made) = (session.config.clone(), session.made.clone());
        let mut ahead = Self { config, made, waiting, task: JoinSet::new() };
        ahead.go_on();
        ahead
    }

    fn go_on(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let rest = self.waiting.split_off(AT_ONCE.min(self.waiting.len()));
        let wanted = std::mem::replace(&mut self.waiting, rest);
        let (config, made) = (self.config.clone(), self.made.clone());
        self.task.spawn(async move {
            match topics::see_to((&config, &made), &wanted).await {
                Ok(()) => wanted.into_iter().map(|it| it.name.into()).collect(),
                // Whatever it is, it is met again, and told, where the topic is needed.
                Err(error) => {
                    tracing::debug!(error = %with_causes(&error), "topics not seen to ahead");
                    Vec::new()
                }
            }
        });
    }

    /// The next topics that are fine; None when there are no more.
    pub(super) async fn next(&mut self) -> Option<Vec<Arc<str>>> {
        let joined = self.task.join_next().await?;
        self.go_on();
        // One that panicked has said so; its topics are seen to where they are needed.
        Some(joined.unwrap_or_default())
    }
}
