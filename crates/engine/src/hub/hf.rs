//! Downloads a file of a Hugging Face repository.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::ApiBuilder;

use super::pip::Failure;
use crate::Error;

/// Downloads `file` of `repository` into `folder` and returns its path. The user's own settings for the hub (endpoint, token) hold.
///
/// The client cannot be interrupted, so it works on a thread of its own. A cancelled download is left to itself: it fails, unheard, when
/// `folder` is removed, or ends with the process.
///
/// # Errors
/// What went wrong, in words; [`Error::Cancelled`].
pub(super) fn download(
    repository: &str,
    file: &str,
    folder: &Path,
    progress: &mut dyn FnMut(u64),
    cancel: &AtomicBool,
) -> Result<PathBuf, Failure> {
    download_from(ApiBuilder::from_env(), repository, file, folder, progress, cancel)
}

fn download_from(
    hub: ApiBuilder,
    repository: &str,
    file: &str,
    folder: &Path,
    progress: &mut dyn FnMut(u64),
    cancel: &AtomicBool,
) -> Result<PathBuf, Failure> {
    let say = |what: &str| Failure::Said(format!("the hub did not give {repository}/{file}: {what}"));
    let (sender, news) = mpsc::channel();
    let work = {
        let (repository, file, folder) = (repository.to_owned(), file.to_owned(), folder.join("hub"));
        let counter = Counter { done: 0, sender: sender.clone() };
        move || {
            let api = hub.with_cache_dir(folder).with_progress(false).build();
            let path = api.and_then(|api| api.model(repository).download_with_progress(&file, counter));
            // Nobody hears it when the download was cancelled.
            let _ = sender.send(News::Ended(path.map_err(|e| e.to_string())));
        }
    };
    let spawned = std::thread::Builder::new().name("hub download".into()).spawn(work);
    spawned.map_err(|e| say(&format!("no thread to download on: {e}")))?;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(Failure::Error(Error::Cancelled));
        }
        match news.recv_timeout(Duration::from_millis(100)) {
            Ok(News::Arrived(bytes)) => progress(bytes),
            Ok(News::Ended(Ok(path))) => return Ok(path),
            Ok(News::Ended(Err(what))) => return Err(say(&what)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(say("its client failed")),
        }
    }
}

/// What the downloading thread tells.
enum News {
    /// Bytes that are here.
    Arrived(u64),
    Ended(Result<PathBuf, String>),
}

struct Counter {
    done: u64,
    sender: Sender<News>,
}

impl Progress for Counter {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.done = 0;
    }
    fn update(&mut self, size: usize) {
        self.done += size as u64;
        let _ = self.sender.send(News::Arrived(self.done));
    }
    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_silent_hub_can_be_left_and_a_dead_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = || ApiBuilder::new().with_endpoint(format!("http://{}", listener.local_addr().unwrap()));
        let (silent, dead) = (hub(), hub());

        // The system accepts the connection on the listener's behalf, and nobody ever answers.
        let (cancel, began) = (AtomicBool::new(false), Instant::now());
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                cancel.store(true, Ordering::Relaxed);
            });
            download_from(silent, "a/b", "c.gguf", folder.path(), &mut |_| {}, &cancel)
        });
        assert!(matches!(outcome, Err(Failure::Error(Error::Cancelled))), "{outcome:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "the hub was waited for");

        drop(listener);
        match download_from(dead, "a/b", "c.gguf", folder.path(), &mut |_| {}, &AtomicBool::new(false)) {
            Err(Failure::Said(what)) => assert!(what.contains("a/b/c.gguf"), "{what}"),
            outcome => panic!("{outcome:?}"),
        }
    }
}
