//! The stage's commits: offsets with the notes of what was filled up to them, and what follows when
//! a partition changes hands ([`filled`] has the argument).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::CommitMode;

use crate::causes::with_causes;
use crate::document::pending::BuildId;
use crate::kafka::consumer::{LogError, Partition, Rebalanced};
use crate::kafka::positions::Settled;
use crate::translate::filled::{self, Filled};
use crate::translate::load::topics_of;
use crate::translate::schedule::owe_durably;
use crate::translate::stage::{Done, Stage};
use crate::translate::{Build, TranslateError};

/// What is known of the group's positions.
#[derive(Debug, Default)]
pub struct Commits {
    /// What was last committed.
    committed: BTreeMap<Partition, (i64, String)>,
    /// Where reading began in each partition that is ours.
    begun: BTreeMap<Partition, i64>,
    /// Partitions that are ours, and of whose positions the notes have not been read yet, each with
    /// the count of its assignment. Nothing is committed of them meanwhile.
    unread: BTreeMap<Partition, u64>,
    assignments: u64,
    reading: bool,
    /// When it was last asked whether the positions are still there.
    looked: Option<Instant>,
    /// Positions as a load found them, after which it saw to every index that their notes lack.
    seen_to: BTreeMap<Partition, i64>,
}

/// The notes of positions have been read, and every index that lacks changes says so.
#[derive(Debug)]
pub struct Read {
    positions: Vec<(Settled, u64)>,
    /// Builds whose index misses changes.
    owed: BTreeSet<BuildId>,
}

/// How often it is asked whether Kafka still has the group's positions.
const LOOK_FOR_FORGOTTEN_EVERY: Duration = Duration::from_secs(5);

impl Commits {
    /// A load has told all indices which these positions' notes lack that a sweep is owed.
    pub fn see_to(&mut self, positions: Vec<(Partition, i64)>) {
        self.seen_to.extend(positions);
    }

    /// Whether it is ours to do what one translator is enough for, where these topics are read:
    /// the first partition of the first of them is. Where none is read, it is everybody's.
    pub fn is_first(&self, topics: &BTreeSet<String>) -> bool {
        topics.first().is_none_or(|topic| {
            let first = Partition { topic: topic.clone(), number: 0 };
            self.begun.contains_key(&first) || self.unread.contains_key(&first)
        })
    }

    fn assigned(&mut self, partitions: Vec<Partition>) {
        // Whoever joined may have set a position back that it took for lost: an offset that stands
        // still would never be committed again.
        self.committed.clear();
        self.assignments += 1;
        self.unread.extend(partitions.into_iter().map(|it| (it, self.assignments)));
    }

    fn revoked(&mut self, partition: &Partition) {
        self.committed.remove(partition);
        self.begun.remove(partition);
        self.unread.remove(partition);
    }
}

impl Stage {
    pub fn on_rebalanced(&mut self, event: Rebalanced) {
        match event {
            Rebalanced::Assigned(partitions) => {
                tracing::info!(count = partitions.len(), "partitions assigned");
                self.rejoining = None;
                self.commits.assigned(partitions);
            }
            Rebalanced::Revoked(partitions) => {
                tracing::info!(count = partitions.len(), "partitions revoked");
                // Whatever the cause: librdkafka lets an assignment follow each revocation, be it
                // empty. An outage may revoke before the log says an error.
                self.rejoining = Some(Instant::now());
                for partition in partitions {
                    self.offsets.revoke(&partition);
                    self.commits.revoked(&partition);
                }
            }
        }
    }

    /// Commits every position that has moved, or whose note has changed.
    pub fn commit_positions(&mut self, mode: CommitMode) {
        if self.log.take_uncommitted() {
            // Whichever it was: an offset that stands still would never be committed otherwise.
            self.commits.committed.clear();
        }
        match self.log.handed_out() {
            Ok(reached) => reached.iter().for_each(|(it, at)| self.offsets.passed(it, *at)),
            // Some marks are passed at the next tick.
            Err(error) => tracing::debug!(error = %with_causes(&error), "no positions"),
        }
        self.read_notes();
        let notes = self.filled().notes();
        let commits = &self.commits;
        let mut positions = commits.begun.clone();
        positions.extend(self.offsets.all_committable().map(|(it, offset)| (it.clone(), offset)));
        let note = |it: &Partition| notes.get(&it.topic).cloned().unwrap_or_default();
        let moved: Vec<(Partition, i64)> = positions
            .into_iter()
            .filter(|(it, _)| !commits.unread.contains_key(it))
            .filter(|(it, offset)| commits.committed.get(it) != Some(&(*offset, note(it))))
            .collect();
        if let Err(error) = self.log.commit(&moved, &notes, mode) {
            // Tried again at the next tick; a crash meanwhile only repeats work.
            tracing::warn!(error = %with_causes(&error), "offsets not committed");
            return;
        }
        let moved = moved.into_iter().map(|(it, offset)| {
            let note = note(&it);
            (it, (offset, note))
        });
        self.commits.committed.extend(moved.collect::<Vec<_>>());
    }

    fn filled(&self) -> Filled {
        let mut filled = Filled::default();
        for build in self.builds.all() {
            filled.add(&build.index, topics_of(&self.context.config.kafka, &build.plan));
        }
        filled
    }

    /// Reads the notes of the partitions that have become ours.
    fn read_notes(&mut self) {
        if self.commits.reading || self.commits.unread.is_empty() || !self.builds.is_loaded() {
            return;
        }
        self.commits.reading = true;
        let (tools, log) = (Arc::clone(&self.tools), Arc::clone(&self.log));
        let unread = self.commits.unread.clone();
        let seen_to = self.commits.seen_to.clone();
        let builds: Vec<(Arc<Build>, BTreeSet<String>)> = self
            .builds
            .all()
            .map(|it| (Arc::clone(it), topics_of(&self.context.config.kafka, &it.plan)))
            .collect();
        self.tasks.spawn(async move {
            let read = match log.settled_positions(unread.keys().cloned().collect()).await {
                Ok(read) => read,
                Err(error) => return Done::NotesRead(Err(error)),
            };
            let mut owed = BTreeSet::new();
            for (build, topics) in &builds {
                let gap = read.iter().find(|it| {
                    topics.contains(&it.partition.topic)
                        && !filled::has(&it.note, &build.index)
                        && seen_to.get(&it.partition) != Some(&it.offset)
                });
                if let Some(gap) = gap {
                    tracing::info!(
                        index = %build.index,
                        topic = gap.partition.topic,
                        partition = gap.partition.number,
                        "its changes were read by a translator that does not fill the index"
                    );
                    owe_durably(&tools, &build.index).await;
                    owed.insert(build.id);
                }
            }
            let assignment = |it: &Settled| unread.get(&it.partition).copied().unwrap_or(0);
            let positions = read.into_iter().map(|it| (assignment(&it), it));
            let positions = positions.map(|(assignment, it)| (it, assignment)).collect();
            Done::NotesRead(Ok(Read { positions, owed }))
        });
    }

    /// Positions whose notes were read may be committed from now on, unless they changed hands.
    ///
    /// # Errors
    /// If there is no position where one was.
    pub fn on_notes_read(&mut self, read: Result<Read, LogError>) -> Result<(), TranslateError> {
        self.commits.reading = false;
        let read = match read {
            Ok(read) => read,
            Err(error) if error.is_forgotten() => return Err(error.into()),
            // Tried again at the next commit.
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "the notes of positions are not read");
                return Ok(());
            }
        };
        for build in read.owed {
            self.builds.miss(build);
        }
        for (it, assignment) in read.positions {
            if self.commits.unread.get(&it.partition) == Some(&assignment) {
                self.commits.unread.remove(&it.partition);
                self.commits.begun.insert(it.partition, it.offset);
            }
        }
        Ok(())
    }

    /// A topic that is deleted and made anew is one for librdkafka: it was seen to read nothing of
    /// the new one and to say nothing, and could begin where the old one had ended. But Kafka
    /// forgets the positions with a topic.
    pub fn look_for_forgotten(&mut self) {
        if self.commits.looked.is_some_and(|it| it.elapsed() < LOOK_FOR_FORGOTTEN_EVERY) {
            return;
        }
        self.commits.looked = Some(Instant::now());
        let partitions: Vec<Partition> = self.commits.committed.keys().cloned().collect();
        if partitions.is_empty() {
            return;
        }
        let log = Arc::clone(&self.log);
        self.tasks.spawn(async move { Done::Forgotten(log.forgotten(partitions).await) });
    }

    /// A new session finds out what is to be swept.
    ///
    /// # Errors
    /// If a position is forgotten in a partition that is still ours.
    pub fn on_forgotten(
        &self,
        found: Result<Vec<Partition>, LogError>,
    ) -> Result<(), TranslateError> {
        // In an outage it is not known, and others tell that.
        let found = found.unwrap_or_default();
        let Some(it) = found.iter().find(|it| self.commits.committed.contains_key(*it)) else {
            return Ok(());
        };
        let Partition { topic, number } = it;
        tracing::warn!(topic, partition = number, "Kafka has forgotten the group's position");
        Err(LogError::forgotten().into())
    }

    /// After an outage librdkafka joins the group again by itself, but was seen not to: its group
    /// stood still after the revocation, and then it does not connect to a broker either, so that
    /// "a broker is up" is no condition to wait for. A new session is a new member; while the
    /// outage lasts, it does not get beyond its first question to the log.
    pub fn check_rejoined(&self) -> Result<(), TranslateError> {
        let late = self.rejoining.is_some_and(|it| it.elapsed() > super::stage::REJOIN_MAX);
        if late && !self.followed.is_empty() {
            let source = rdkafka::error::KafkaError::Canceled;
            return Err(LogError { doing: "joining the group again", source }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_translators_is_the_first_for_a_collection() {
        let topics = BTreeSet::from(["apple".to_owned(), "pear".to_owned()]);
        let place = |topic: &str, number| Partition { topic: topic.to_owned(), number };
        let mut commits = Commits::default();
        assert!(!commits.is_first(&topics), "nothing is ours yet");
        assert!(commits.is_first(&BTreeSet::new()), "nobody reads anything for it");
        commits.assigned(vec![place("apple", 1), place("pear", 0)]);
        assert!(!commits.is_first(&topics), "another one has the first partition");
        commits.assigned(vec![place("apple", 0)]);
        assert!(commits.is_first(&topics));
        commits.unread.clear();
        commits.begun.insert(place("apple", 0), 7);
        assert!(commits.is_first(&topics), "also once its notes are read");
        commits.revoked(&place("apple", 0));
        assert!(!commits.is_first(&topics));
    }
}
