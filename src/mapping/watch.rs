//! Says when a folder of mapping files may have changed.
//!
//! Two ways at once: the kernel's notifications, which are fast, and a look every 2 s at each
//! file's size, time and inode, which misses nothing: editors that replace files by rename, a
//! Kubernetes ConfigMap that swaps its `..data` link, network file systems without notifications,
//! a folder that is deleted and made anew. A notification only hastens the look: a signal is given
//! only when the look differs from the last one, so that reading the files causes none.
//!
//! **Invariant:** whatever was written before a signal was received is seen by who reads the
//! folder after it; what is written later causes another signal.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::Watcher;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// Editors write a file in several steps; this long without another notification, and it is done.
const QUIET: Duration = Duration::from_millis(100);
/// Notifications may go on for ever (a log written into the folder); then a look is due anyway.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest that a change stays unseen without notifications.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What a file is known by: size, modification time in nanoseconds, inode.
type Fingerprint = BTreeMap<PathBuf, (u64, i128, u64)>;

/// Sends `()` into `changes` whenever the folder's files have changed since `load` last began.
///
/// Runs until the receiver is dropped. `changes` should have room for one: a signal that waits
/// already says what another one would.
///
/// The look that later ones are compared with is taken when the future is first polled, and one
/// signal is sent at once, so that a change between the caller's first load and that look is not
/// missed.
pub async fn watch(folder: PathBuf, changes: mpsc::Sender<()>) {
    let (notice, mut noticed) = mpsc::channel(1);
    let mut seen = None;
    let mut watcher = None;
    while !changes.is_closed() {
        // Made anew when the link or the folder behind it is another one: inotify follows inodes.
        let real = std::fs::canonicalize(&folder).ok();
        if watcher.as_ref().is_none_or(|(of, _)| *of != real) {
            watcher = Some((real, watch_folder(&folder, notice.clone())));
        }
        let now = look(&folder);
        if seen.as_ref() != Some(&now) {
            seen = Some(now);
            match changes.try_send(()) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
                Err(mpsc::error::TrySendError::Closed(())) => return,
            }
        }
        tokio::select! {
            biased;
            // 1. Nobody listens any more.
            () = changes.closed() => return,
            // 2. Something happens: look when it is over.
            Some(()) = noticed.recv() => quiet(&mut noticed).await,
            // 3. Nothing is heard, which proves nothing.
            () = sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Waits until no notification has come for a while.
async fn quiet(noticed: &mut mpsc::Receiver<()>) {
    let end = Instant::now() + QUIET_WAIT_MAX;
    while Instant::now() < end {
        if timeout(QUIET, noticed.recv()).await.is_err() {
            return;
        }
    }
}

/// Notifications of a folder. None: there are none on this file system, and looking must do.
fn watch_folder(folder: &Path, notice: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |_| {
        // Full: a notification is waiting already. Closed: nobody waits.
        notice.try_send(()).ok();
    })
    .ok()?;
    watcher.watch(folder, notify::RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

/// Every TOML file of the folder with what it is known by, links followed. A folder that can't be
/// listed looks empty.
fn look(folder: &Path) -> Fingerprint {
    let Ok(items) = std::fs::read_dir(folder) else { return Fingerprint::new() };
    items
        .filter_map(Result::ok)
        .map(|it| it.path())
        .filter(|path| path.extension().is_some_and(|it| it == "toml"))
        .filter_map(|path| {
            let it = std::fs::metadata(&path).ok()?;
            let nanos = i128::from(it.mtime()) * 1_000_000_000 + i128::from(it.mtime_nsec());
            Some((path, (it.len(), nanos, it.ino())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `change` beside a watched folder and waits for the signal that must follow.
    async fn check(folder: &Path, change: impl FnOnce()) {
        let (sender, mut changes) = mpsc::channel(1);
        let watched = watch(folder.to_owned(), sender);
        let story = async {
            changes.recv().await.unwrap();
            change();
            timeout(Duration::from_secs(10), changes.recv()).await.expect("no signal").unwrap();
            drop(changes);
        };
        tokio::join!(watched, story);
    }

    #[tokio::test]
    async fn every_kind_of_change_is_signalled() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("connectors");
        let file = folder.join("a.toml");
        std::fs::create_dir(&folder).unwrap();
        check(&folder, || std::fs::write(&file, "a = 1").unwrap()).await;
        check(&folder, || std::fs::write(&file, "a = 10").unwrap()).await;
        check(&folder, || {
            std::fs::write(folder.join("tmp"), "a = 20").unwrap();
            std::fs::rename(folder.join("tmp"), &file).unwrap();
        })
        .await;
        check(&folder, || std::fs::remove_file(&file).unwrap()).await;
        check(&outer.path().join("later"), || {
            std::fs::create_dir(outer.path().join("later")).unwrap();
            std::fs::write(outer.path().join("later/a.toml"), "").unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn a_config_map_that_swaps_its_link_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["v1", "v2"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("a.toml"), "same").unwrap();
        }
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, at(from)).unwrap();
        link("v1", "..data");
        link("..data/a.toml", "a.toml");
        check(folder.path(), || {
            link("v2", "..data_tmp");
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        })
        .await;
    }
}
