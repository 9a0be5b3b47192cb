//! The desk of copies: where they are asked for, and where it is said how they are.
//!
//! The HTTP server brings wishes here, capture takes them, one at a time, and answers each; what
//! capture says of its copies stays here for `/v1/status`. So neither knows the other. A wish that
//! nobody takes, because the stream does not run, is waited for by whoever asked.

mod made_topics;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

pub use made_topics::MadeTopics;

/// Wishes that wait for capture. A person makes one at a time.
const WISHES_MAX: usize = 16;

/// What is to become of the copy of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// `condition`: only of rows for which this SQL is true.
    Start {
        condition: Option<String>,
    },
    Pause,
    Resume,
    Cancel,
}

/// Why a wish is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The wish itself is wrong.
    #[error("{0}")]
    Wrong(String),
    /// It does not fit how the copy is.
    #[error("{0}")]
    NotNow(String),
    /// Something that it needs is not there at the moment.
    #[error("{0}; try again")]
    Unavailable(String),
}

/// A wish and whom to answer.
#[derive(Debug)]
pub struct Asked {
    /// `namespace.name`
    pub table: String,
    pub wish: Wish,
    pub reply: oneshot::Sender<Result<(), Refusal>>,
}

/// How the copy of a table is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CopyStatus {
    pub state: &'static str,
    pub rows: u64,
    /// By Postgres' estimate.
    pub expected_rows: u64,
    pub rows_per_second: u64,
    pub seconds_left: Option<u64>,
    /// Why it does not go on at the moment.
    pub waits_for: Option<String>,
}

/// Shared by capture and the HTTP server.
#[derive(Debug, Clone)]
pub struct Desk {
    wishes: mpsc::Sender<Asked>,
    waiting: Arc<tokio::sync::Mutex<mpsc::Receiver<Asked>>>,
    statuses: Arc<Mutex<BTreeMap<String, CopyStatus>>>,
    topics: MadeTopics,
}

impl Default for Desk {
    fn default() -> Self {
        let (wishes, waiting) = mpsc::channel(WISHES_MAX);
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        Self { wishes, waiting, statuses: Arc::default(), topics: MadeTopics::default() }
    }
}

impl Desk {
    /// Brings a wish, and waits for capture's answer.
    ///
    /// # Errors
    /// What capture says, or that it is gone.
    pub async fn ask(&self, table: String, wish: Wish) -> Result<(), Refusal> {
        let gone = || Refusal::Unavailable("capture has just ended its session".to_owned());
        let (reply, answer) = oneshot::channel();
        self.wishes.send(Asked { table, wish, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Where the wishes wait, for the session of capture that holds it.
    pub fn waiting(&self) -> Arc<tokio::sync::Mutex<mpsc::Receiver<Asked>>> {
        Arc::clone(&self.waiting)
    }

    /// Topics that capture has made: a table whose topic was deleted is to be copied again.
    pub fn topics(&self) -> &MadeTopics {
        &self.topics
    }

    /// Changes what is said of a table's copy.
    pub fn say(&self, table: &str, change: impl FnOnce(&mut CopyStatus)) {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        change(statuses.entry(table.to_owned()).or_default());
    }

    /// The table is not published any more.
    pub fn forget(&self, table: &str) {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).remove(table);
    }

    /// By table.
    pub fn statuses(&self) -> BTreeMap<String, CopyStatus> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
