//! Which LSN may be confirmed to Postgres (rule 1).
//!
//! Changes flow singly, so the size of a transaction is known only at its end: [`Progress`] counts
//! the records of the open transaction as they are sent, and the acknowledgements of all as they
//! arrive, in any order. A transaction is named by a small number, so that a delivery callback can
//! carry it in a machine word.
//!
//! It knows no clock and no Kafka, and holds one small entry for each transaction that has records
//! since the oldest one that waits. Kafka's delivery timeout bounds how far that one lags behind;
//! transactions without records cost nothing.
//!
//! **Invariant:** `confirmed` never passes a transaction that is not fully acknowledged, and never
//! goes back. Postgres may delete WAL up to `confirmed`, so breaking this loses changes.

use std::collections::VecDeque;

use crate::lsn::Lsn;

/// Names a transaction that was begun here. Numbers are given in ascending order.
pub type TransactionSeq = u64;

/// The server broke its promise to send transactions in the order of their commits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Postgres sent a commit that ends at {end} after one that ends at {newest}")]
pub struct CommitOutOfOrder {
    pub newest: Lsn,
    pub end: Lsn,
}

/// Transactions handed to Kafka and not yet acknowledged, oldest first.
#[derive(Debug)]
pub struct Progress {
    confirmed: Lsn,
    /// The number of `in_flight[0]`.
    first: TransactionSeq,
    in_flight: VecDeque<InFlight>,
    /// End of the newest commit, or `confirmed` when that is newer.
    newest: Lsn,
}

#[derive(Debug)]
struct InFlight {
    unacknowledged: u64,
    sent: u64,
    /// Where its commit ends; None while it is open, which only the last one may be.
    end: Option<Lsn>,
}

impl Progress {
    /// Resumes at `confirmed`, naming transactions from `first` on: acknowledgements of a former
    /// session, whose numbers are lower, are then told apart and ignored.
    pub fn resume(confirmed: Lsn, first: TransactionSeq) -> Self {
        Self { confirmed, first, in_flight: VecDeque::new(), newest: confirmed }
    }

    /// A transaction starts: its number.
    ///
    /// # Panics
    /// If one is open already. The assembler refuses such a stream.
    pub fn begin(&mut self) -> TransactionSeq {
        assert!(!self.is_open(), "a transaction begins only after the last one's commit");
        let seq = self.next();
        self.in_flight.push_back(InFlight { unacknowledged: 0, sent: 0, end: None });
        seq
    }

    /// One record of the open transaction is about to be handed to Kafka.
    ///
    /// Said before it is handed over, since its acknowledgement may arrive on another thread
    /// before the call returns.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn sent(&mut self) {
        let open = self.in_flight.back_mut().filter(|it| it.end.is_none());
        let open = open.expect("records are sent within a transaction");
        open.unacknowledged += 1;
        open.sent += 1;
    }

    /// The record just counted by [`Progress::sent`] was not taken.
    ///
    /// # Panics
    /// If no transaction is open, or it has sent nothing.
    pub fn not_sent(&mut self) {
        let open = self.in_flight.back_mut().filter(|it| it.end.is_none());
        let open = open.expect("records are sent within a transaction");
        assert!(0 < open.unacknowledged, "only what was sent can be taken back");
        open.unacknowledged -= 1;
        open.sent -= 1;
    }

    /// The open transaction is complete; its commit ends at `end`.
    ///
    /// # Errors
    /// If `end` is not past every commit before it.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn commit(&mut self, end: Lsn) -> Result<(), CommitOutOfOrder> {
        assert!(self.is_open(), "a commit ends an open transaction");
        if end <= self.newest {
            return Err(CommitOutOfOrder { newest: self.newest, end });
        }
        self.newest = end;
        let open = self.in_flight.back_mut().expect("one is open");
        open.end = Some(end);
        if open.sent == 0 && 1 < self.in_flight.len() {
            // It has nothing to wait for but its predecessor: that one now ends here, and the
            // number, which no record carries, is given again.
            self.in_flight.pop_back();
            let last = self.in_flight.back_mut().expect("there is a predecessor");
            last.end = Some(end);
        }
        self.advance();
        Ok(())
    }

    /// One record of transaction `seq` is durable in Kafka. Whether `confirmed` moved.
    ///
    /// A number of a former session is ignored.
    ///
    /// # Panics
    /// If the number was never given, or all its records are acknowledged already.
    pub fn acknowledged(&mut self, seq: TransactionSeq) -> bool {
        let Some(nth) = seq.checked_sub(self.first) else {
            return false;
        };
        let found = usize::try_from(nth).ok().and_then(|nth| self.in_flight.get_mut(nth));
        let transaction = found.expect("acknowledged a transaction that was never begun");
        assert!(0 < transaction.unacknowledged, "acknowledged twice: transaction {seq}");
        transaction.unacknowledged -= 1;
        let before = self.confirmed;
        self.advance();
        self.confirmed != before
    }

    /// Everything before `wal_end` has been decoded and sent to us.
    ///
    /// Moves `confirmed` only when nothing is pending, which makes it true that nothing before
    /// `wal_end` is still to be published. An idle slot advances this way.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if self.in_flight.is_empty() && self.confirmed < wal_end {
            self.confirmed = wal_end;
            self.newest = wal_end;
        }
    }

    /// The position that is safe to report as flushed.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// The end of the newest commit; or the last keepalive's position, which ends all before it.
    pub fn newest(&self) -> Lsn {
        self.newest
    }

    /// The number that the next transaction gets; all transactions below have begun.
    pub fn next(&self) -> TransactionSeq {
        let running = u64::try_from(self.in_flight.len()).expect("a list's length fits");
        self.first + running
    }

    /// All transactions with lower numbers are acknowledged and confirmed.
    pub fn first_in_flight(&self) -> TransactionSeq {
        self.first
    }

    /// Whether nothing is open and nothing waits for an acknowledgement.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether a transaction has begun and not yet committed.
    pub fn is_open(&self) -> bool {
        self.in_flight.back().is_some_and(|it| it.end.is_none())
    }

    fn advance(&mut self) {
        while let Some(end) =
            self.in_flight.front().filter(|it| it.unacknowledged == 0).and_then(|it| it.end)
        {
            assert!(self.confirmed < end, "confirmed only grows: {} then {end}", self.confirmed);
            self.confirmed = end;
            self.in_flight.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may happen, as a random choice; the test makes the possible move of each.
    #[derive(Debug, Clone)]
    enum Move {
        Begin,
        Send,
        Commit,
        /// Acknowledges one of the outstanding records, chosen by the number.
        Acknowledge(usize),
        Keepalive,
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            3 => Just(Move::Begin),
            4 => Just(Move::Send),
            3 => Just(Move::Commit),
            5 => any::<usize>().prop_map(Move::Acknowledge),
            1 => Just(Move::Keepalive),
        ];
        proptest::collection::vec(one, 1..120)
    }

    /// Every transaction ever, with its records; the answer is recomputed from scratch.
    #[derive(Default)]
    struct Model {
        /// (unacknowledged, end)
        transactions: Vec<(u64, Option<Lsn>)>,
        /// (number of the transaction, its place in `transactions`), one for each record.
        outstanding: Vec<(TransactionSeq, usize)>,
        idle_at: Lsn,
        clock: u64,
    }

    impl Model {
        fn confirmed(&self) -> Lsn {
            let done = self.transactions.iter().take_while(|it| it.0 == 0 && it.1.is_some());
            done.filter_map(|it| it.1).last().map_or(self.idle_at, |it| it.max(self.idle_at))
        }

        fn tick(&mut self) -> Lsn {
            self.clock += 10;
            Lsn(self.clock)
        }
    }

    proptest! {
        #[test]
        fn confirmed_is_the_end_of_the_acknowledged_prefix(moves in moves()) {
            let mut progress = Progress::resume(Lsn(0), 7);
            let mut model = Model::default();
            let mut open = None;
            for step in moves {
                match step {
                    Move::Begin if open.is_none() => {
                        open = Some(progress.begin());
                        model.transactions.push((0, None));
                    }
                    Move::Send => if let Some(seq) = open {
                        progress.sent();
                        let nth = model.transactions.len() - 1;
                        model.transactions[nth].0 += 1;
                        model.outstanding.push((seq, nth));
                    },
                    Move::Commit if open.take().is_some() => {
                        let end = model.tick();
                        progress.commit(end).unwrap();
                        model.transactions.last_mut().unwrap().1 = Some(end);
                    }
                    Move::Acknowledge(pick) if !model.outstanding.is_empty() => {
                        let pick = pick % model.outstanding.len();
                        let (seq, nth) = model.outstanding.swap_remove(pick);
                        let before = progress.confirmed();
                        let moved = progress.acknowledged(seq);
                        prop_assert_eq!(moved, before != progress.confirmed());
                        model.transactions[nth].0 -= 1;
                    }
                    Move::Keepalive => {
                        let at = model.tick();
                        progress.keepalive(at);
                        if model.outstanding.is_empty() && open.is_none() {
                            model.idle_at = at;
                        }
                    }
                    Move::Begin | Move::Commit | Move::Acknowledge(_) => {}
                }
                prop_assert_eq!(progress.confirmed(), model.confirmed());
                prop_assert_eq!(progress.is_open(), open.is_some());
                let quiet = model.outstanding.is_empty() && open.is_none();
                prop_assert_eq!(progress.is_idle(), quiet);
                let after_first = progress.in_flight.iter().skip(1);
                prop_assert!(after_first.filter(|it| it.sent == 0).count() <= usize::from(!quiet));
            }
        }
    }

    #[test]
    fn acknowledgements_of_a_former_session_are_ignored() {
        let mut progress = Progress::resume(Lsn(5), 3);
        let seq = progress.begin();
        progress.sent();
        assert_eq!(seq, 3);
        assert!(!progress.acknowledged(2));
        progress.commit(Lsn(9)).unwrap();
        assert_eq!(progress.confirmed(), Lsn(5));
        assert!(progress.acknowledged(3));
        assert_eq!(progress.confirmed(), Lsn(9));
    }

    #[test]
    fn a_commit_that_goes_back_is_refused() {
        let mut progress = Progress::resume(Lsn(5), 0);
        progress.begin();
        let expected = CommitOutOfOrder { newest: Lsn(5), end: Lsn(5) };
        assert_eq!(progress.commit(Lsn(5)), Err(expected));
    }

    #[test]
    fn a_record_that_was_not_taken_is_not_waited_for() {
        let mut progress = Progress::resume(Lsn(0), 0);
        progress.begin();
        progress.sent();
        progress.not_sent();
        progress.commit(Lsn(1)).unwrap();
        assert_eq!(progress.confirmed(), Lsn(1));
    }
}
