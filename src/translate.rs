//! The translate role: change records in, documents out.
//!
//! ```text
//! log ──> route ──keys──> pending ──batches──> refresh (read, then write)
//!            └──images──> lookup ──keys──┘          sweep (slices of a whole collection) ─┘
//! ```
//!
//! One task, the stage, owns all state: what is pending, which offsets are done, which builds
//! there are. Reads and writes run as tasks of their own, as many as there are connections.
//!
//! A *build* is one definition of a collection and its index. A changed mapping makes a new build
//! beside the serving one; both get live changes until the alias is swapped.

pub mod builds;
pub mod claims;
pub mod commits;
pub mod epoch;
pub mod fanout;
pub mod filled;
pub mod fingerprint;
pub mod intake;
pub mod load;
pub mod lookup;
pub mod lookups;
pub mod news;
pub mod paces;
pub mod place;
pub mod publish;
pub mod readers;
pub mod refresh;
pub mod route;
pub mod schedule;
pub mod stage;
pub mod sweep;
pub mod tend;
pub mod verify;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::causes::with_causes;
use crate::config::Config;
use crate::document::pending::BuildId;
use crate::document::read::{ReadError, ReadLimits};
use crate::elasticsearch::client::{Distribution, ElasticError, Elasticsearch};
use crate::health::Health;
use crate::kafka::consumer::{Log, LogError};
use crate::kafka::feedback_sender::{FeedbackError, FeedbackSender};
use crate::kafka::progress_record::ProgressReadError;
use crate::kafka::side::SideError;
use crate::kafka::side::SideProducer;
use crate::kafka::topics::TopicError;
use crate::mapping::plan::{CollectionPlan, TableName};
use crate::mapping::resolve::ResolveError;
use crate::metrics::Metrics;
use crate::mistake::Mistakes;
use crate::postgres::client::ConnectError;
use crate::postgres::publication::PublicationError;
use crate::translate::claims::Claims;
use crate::translate::epoch::Identity;
use crate::translate::readers::Readers;
use crate::translate::sweep::pace::LoadMeter;
use crate::translate::verify::Tally;

/// What the supervisor hands to the role.
#[derive(Clone)]
pub struct Context {
    pub config: Config,
    pub metrics: Metrics,
    pub health: Health,
    pub shutdown: CancellationToken,
}

/// One definition of a collection and the index that it fills.
#[derive(Debug)]
pub struct Build {
    pub id: BuildId,
    pub plan: CollectionPlan,
    /// What every read of the build locks.
    pub tables: Vec<TableName>,
    /// The plan's name, to be shared by every write.
    pub collection: Arc<str>,
    pub index: Arc<str>,
    pub alias: String,
    /// Cancelled once the build is forgotten: its sweep must not swap the alias to it any more.
    pub gone: CancellationToken,
    /// What its writers tell the verification before the swap.
    pub tally: Tally,
}

/// What the tasks of one session share.
pub struct Tools {
    pub readers: Readers,
    pub elastic: Elasticsearch,
    pub distribution: Distribution,
    pub side: SideProducer,
    pub metrics: Metrics,
    pub claims: Claims,
    /// Which database we read; a read from another one ends the session.
    pub identity: Identity,
    pub config: Config,
    /// For its positions; it is the stage's, who closes it.
    pub log: Weak<Log>,
    /// What sweeps pace themselves by.
    pub load: LoadMeter,
    /// To the gateways, if there are any.
    pub feedback: Option<FeedbackSender>,
    /// Keys that one round of refreshes takes: more that wait are a queue.
    pub refresh_round_keys: usize,
}

/// Why a session of the role ended.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    #[error("no mapping file can be used; mend one of them:\n{0}")]
    NoMapping(Mistakes),
    #[error("Postgres does not serve reads")]
    Postgres(#[from] ReadError),
    #[error("Postgres does not resolve the mappings")]
    Resolve(#[from] ResolveError),
    #[error("the log cannot be read")]
    Log(#[from] LogError),
    #[error("the mapping folder {} cannot be read; see [translate] mappings", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "there is an index named {alias} in Elasticsearch, where onelog needs an alias; rename or \
         delete that index, or set [elasticsearch] index_prefix"
    )]
    AliasTaken { alias: String },
    #[error("the progress topic cannot be used")]
    Progress(#[from] ProgressReadError),
    #[error("a topic that the mappings read can't be made")]
    Topic(#[from] TopicError),
    #[error("the published tables can't be read")]
    Publication(#[from] PublicationError),
    #[error("the producer of dead letters cannot be made")]
    Side(#[from] SideError),
    #[error("what gateways are told cannot be sent")]
    Feedback(#[from] FeedbackError),
    #[error("Postgres does not let us resolve the mappings")]
    Connect(#[from] ConnectError),
    #[error("Elasticsearch does not serve")]
    Elastic(#[from] ElasticError),
    #[error("the database we read is another one now: a failover or a restore")]
    Moved,
    #[error("the version of documents has no more room: epoch {epoch}")]
    VersionExhausted { epoch: u32 },
}

/// What the role does about its error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Start a new session after a while.
    Retry,
    /// A person has to change something.
    Halt,
}

impl TranslateError {
    /// Whether Postgres refuses what a person can give, such as a password that was changed: who
    /// has been in order waits for that, as capture does.
    fn is_curable(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Postgres(_) | Self::Resolve(_))
    }

    pub fn reaction(&self) -> Reaction {
        let retry = |transient| if transient { Reaction::Retry } else { Reaction::Halt };
        match self {
            Self::NoMapping(_)
            | Self::VersionExhausted { .. }
            | Self::Folder { .. }
            | Self::AliasTaken { .. } => Reaction::Halt,
            Self::Log(_) | Self::Side(_) | Self::Moved => Reaction::Retry,
            Self::Connect(error) => retry(error.is_transient()),
            Self::Postgres(error) => retry(error.is_transient()),
            Self::Resolve(error) => retry(error.is_transient()),
            Self::Progress(error) => retry(error.is_transient()),
            Self::Topic(error) => retry(error.is_transient()),
            Self::Feedback(error) => retry(error.is_transient()),
            Self::Publication(error) => retry(error.is_transient()),
            Self::Elastic(error) => retry(error.is_transient()),
        }
    }
}

/// First pause before a new session; doubled with each failure in a row.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest pause: what an operator is willing to wait after mending an outage.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Runs sessions until `shutdown`, or until something needs a person. `reload` asks for the
/// mapping files to be read again.
pub async fn run_translate(
    context: Context,
    mut reload: mpsc::Receiver<()>,
) -> Result<(), TranslateError> {
    let mut pause = RETRY_FIRST;
    let mut settled = false;
    loop {
        let started = tokio::time::Instant::now();
        let ended = stage::run_session(&context, &mut reload).await;
        settled |= !context.health.collections().is_empty();
        let error = match ended {
            Ok(()) => return Ok(()),
            Err(error) if error.reaction() == Reaction::Retry => error,
            Err(error) if settled && error.is_curable() => error,
            Err(error) => return Err(error),
        };
        if started.elapsed() > RETRY_MAX {
            pause = RETRY_FIRST;
        }
        let reason = with_causes(&error);
        tracing::warn!(error = %reason, pause = ?pause, "translate session ended, starting anew");
        context.health.waits("translate", reason);
        context.metrics.stage_restarts_total.with_label_values(&["translate"]).inc();
        tokio::select! {
            biased;

            // 1. Shutdown ends the pause.
            () = context.shutdown.cancelled() => return Ok(()),
            // 2. The pause is over.
            () = tokio::time::sleep(pause) => {}
        }
        pause = RETRY_MAX.min(pause * 2);
    }
}

/// Prepared statements on each connection: the entries and paths of some dozen collections.
const STATEMENTS_CACHED: usize = 200;

/// The limits of reads, from the config.
pub fn read_limits(config: &Config) -> ReadLimits {
    ReadLimits {
        statement_timeout: config.translate.statement_timeout,
        lock_timeout: config.translate.lock_timeout,
        statements_cached: STATEMENTS_CACHED,
    }
}
