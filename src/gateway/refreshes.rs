//! Makes what was written findable by searches: Elasticsearch does so once a second by itself, and
//! who has waited for a document may want to find it in a list at once.
//!
//! Each refresh costs a shard a segment, so that many who ask within a moment share one.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::elasticsearch::client::ElasticError;

/// Between two refreshes of an index. Whoever asks waits this long at most, and the refresh.
const PAUSE: Duration = Duration::from_millis(200);

/// When the refreshes of an alias began; held while one runs.
type Last = Arc<Mutex<Option<Instant>>>;

#[derive(Debug, Default)]
pub struct Refreshes {
    by_alias: std::sync::Mutex<HashMap<String, Last>>,
}

impl Refreshes {
    /// Returns once a refresh has ended that began after this call. `refresh` does one; it is
    /// called only for an alias that there is, so that the list stays short.
    ///
    /// # Errors
    /// Those of `refresh`.
    pub async fn refresh<F: Future<Output = Result<(), ElasticError>>>(
        &self,
        alias: &str,
        refresh: impl FnOnce() -> F,
    ) -> Result<(), ElasticError> {
        let asked = Instant::now();
        let last = {
            let mut all = self.by_alias.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(alias.to_owned()).or_default())
        };
        let mut last = last.lock().await;
        if last.is_some_and(|it| asked <= it) {
            return Ok(());
        }
        if let Some(before) = *last {
            sleep_until(before + PAUSE).await;
        }
        let begun = Instant::now();
        refresh().await?;
        *last = Some(begun);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_share_a_refresh_that_began_after_them() {
        let (refreshes, count) = (Refreshes::default(), AtomicUsize::new(0));
        let one = || {
            refreshes.refresh("a", || async {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(())
            })
        };
        let begun = Instant::now();
        assert!(join_all((0..100).map(|_| one())).await.iter().all(Result::is_ok));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // It may have begun before they asked: not theirs.
        assert!(join_all((0..100).map(|_| one())).await.iter().all(Result::is_ok));
        assert_eq!(count.load(Ordering::Relaxed), 2);
        assert_eq!(begun.elapsed(), Duration::from_millis(250));
    }
}
