//! Requests a reload when the configuration file of a running daemon changes, or a file in the directories of templates that it names.
//!
//! It watches the directories that lead to the file rather than the file, since editors and orchestrators replace the
//! file or a symbolic link. Events only trigger a check of whether the path now leads to another file, or to the same file
//! with other times or another length. It never reads the file's content.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::file_version::{Directory, FileVersion, ResolvedFile, content_of, directories_in, directories_on_path};
use crate::control::{Control, ControlError, Permit};
use crate::ledger::LOCAL_ACTOR;
use crate::shutdown::Shutdown;

/// How long a changed file must stay unchanged before it is reloaded.
const QUIET_PERIOD: Duration = Duration::from_secs(1);
/// How long to wait for a writer to close the file. After that the file is reloaded although it is open.
const OPEN_WRITER_DEADLINE: Duration = Duration::from_secs(60);
/// Interval of the checks without an event: some file systems send none, and directories can be replaced. Also the interval
/// at which a file that was rejected for a temporary reason is tried again.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Delay before a reload is requested again while the daemon is starting.
const NOT_RUNNING_DELAY: Duration = Duration::from_secs(1);

/// Watches one file, and the directories that the active configuration names.
pub struct ConfigWatcher {
    path: PathBuf,
    directories: watch::Receiver<Vec<PathBuf>>,
    /// `None` where the operating system's file events are not available.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<Directory>,
    events: Arc<FileEvents>,
    /// The files as of the last reload, or of the start.
    reloaded: Option<WatchedFiles>,
}

/// The files that are watched, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WatchedFiles {
    config: ResolvedFile,
    templates: Vec<(PathBuf, FileVersion)>,
}

/// Shared with the thread that receives the operating system's events.
#[derive(Debug, Default)]
struct FileEvents {
    /// Notified when anything changed in a watched directory.
    changed: Notify,
    writer: Mutex<WriterState>,
}

#[derive(Debug, Default)]
struct WriterState {
    /// The configuration file's path without symbolic links.
    target: PathBuf,
    /// The directories of templates and their folders, without symbolic links.
    folders: BTreeSet<PathBuf>,
    /// Files that a process has written to and not closed yet.
    open: BTreeSet<PathBuf>,
}

/// Most files that are known to be open at the same time.
const MAX_OPEN: usize = 1_024;

impl WriterState {
    fn is_watched(&self, path: &Path) -> bool {
        path == self.target || path.parent().is_some_and(|parent| self.folders.contains(parent))
    }
}

impl ConfigWatcher {
    /// Starts to watch. If that fails, a warning is logged and the file is polled instead.
    ///
    /// `directories` are the directories of templates that the active configuration names.
    pub async fn new(path: PathBuf, directories: watch::Receiver<Vec<PathBuf>>) -> Self {
        let events = Arc::<FileEvents>::default();
        let receiver = Arc::clone(&events);
        let watcher = notify::recommended_watcher(move |event| receiver.receive(event));
        let watcher = watcher.inspect_err(|error| warn_cannot_watch(&path, error)).ok();
        let watched = BTreeSet::new();
        let mut config_watcher = ConfigWatcher { path, directories, watcher, watched, events, reloaded: None };
        config_watcher.reloaded = config_watcher.check_files().await;
        config_watcher
    }

    /// Requests a reload whenever the file has changed, until the daemon shuts down.
    pub async fn run(mut self, control: Control, shutdown: Shutdown) {
        info!(path = %self.path.display(), "watching the configuration file");
        // Cancel-safe: the daemon carries out a requested reload even if its answer is dropped.
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.reload_on_change(&control) => {}
        }
    }

    async fn reload_on_change(&mut self, control: &Control) {
        loop {
            // Cancel-safe: both only wait, and the next check finds a change whose event was missed here.
            tokio::select! {
                () = self.events.changed.notified() => {}
                Ok(()) = self.directories.changed() => {}
                () = sleep(POLL_INTERVAL) => {}
            }
            while let Some(changed) = self.changed_files().await {
                match control.reload("file", LOCAL_ACTOR.to_owned(), Permit::unlimited()).await {
                    Ok(report) if report.temporary => break,
                    Ok(_) => self.reloaded = Some(changed),
                    // The daemon is starting; or it is stopping, which ends this task too.
                    Err(ControlError::NotRunning) => sleep(NOT_RUNNING_DELAY).await,
                    Err(error) => {
                        warn!(%error, "cannot reload the changed configuration file");
                        self.reloaded = Some(changed);
                    }
                }
            }
        }
    }

    /// The files, if they differ from those reloaded last. Waits until they stay unchanged and no writer has one open.
    async fn changed_files(&mut self) -> Option<WatchedFiles> {
        let start = Instant::now();
        let mut last = self.check_files().await?;
        while Some(&last) != self.reloaded.as_ref() {
            sleep(QUIET_PERIOD).await;
            // A configuration file that stays missing is not reloaded; the active configuration remains.
            let files = self.check_files().await?;
            let is_open = !self.events.writer().open.is_empty() && start.elapsed() < OPEN_WRITER_DEADLINE;
            if files == last && !is_open {
                return Some(files);
            }
            last = files;
        }
        None
    }

    /// Resolves the paths, and watches the directories that lead to the files.
    async fn check_files(&mut self) -> Option<WatchedFiles> {
        let (path, roots) = (self.path.clone(), self.directories.borrow_and_update().clone());
        let resolving = spawn_blocking(move || {
            let leading = roots.iter().chain([&path]).flat_map(|path| directories_on_path(path)).collect();
            let folders = roots.iter().flat_map(|root| directories_in(root)).collect();
            let templates = roots.iter().flat_map(|root| content_of(root)).collect();
            (leading, folders, ResolvedFile::at(&path).ok(), templates)
        });
        let resolved = resolving.await.expect("resolving paths neither panics nor is cancelled");
        let (mut directories, folders, config, templates): (BTreeSet<_>, BTreeSet<Directory>, _, _) = resolved;
        {
            let mut writer = self.events.writer();
            if let Some(config) = &config {
                writer.target.clone_from(&config.target);
            }
            writer.folders = folders.iter().map(|folder| folder.path.clone()).collect();
            // What is not watched any more, or does not exist any more, is never closed.
            let open = std::mem::take(&mut writer.open);
            writer.open = open.into_iter().filter(|path| writer.is_watched(path) && path.exists()).collect();
        }
        directories.extend(folders);
        self.watch(directories);
        Some(WatchedFiles { config: config?, templates })
    }

    fn watch(&mut self, directories: BTreeSet<Directory>) {
        let Some(watcher) = &mut self.watcher else { return };
        for directory in self.watched.difference(&directories) {
            // Fails if the directory is gone, and the watch with it.
            let _ = watcher.unwatch(&directory.path);
        }
        for directory in directories.difference(&self.watched) {
            if let Err(error) = watcher.watch(&directory.path, RecursiveMode::NonRecursive) {
                warn_cannot_watch(&directory.path, &error);
            }
        }
        self.watched = directories;
    }
}

fn warn_cannot_watch(path: &Path, error: &notify::Error) {
    warn!(path = %path.display(), %error, interval = ?POLL_INTERVAL, "cannot watch the configuration file for changes; polling it instead");
}

impl FileEvents {
    fn writer(&self) -> MutexGuard<'_, WriterState> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, event: notify::Result<Event>) {
        if let Ok(event) = event {
            let mut writer = self.writer();
            let files: Vec<PathBuf> = event.paths.into_iter().filter(|path| writer.is_watched(path)).collect();
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) if !files.is_empty() => {
                    writer.open.retain(|open| !files.contains(open));
                }
                // Reading changes nothing; orderd reads the files itself.
                EventKind::Access(_) => return,
                EventKind::Modify(ModifyKind::Data(_)) => {
                    if writer.open.len() < MAX_OPEN {
                        writer.open.extend(files);
                    }
                }
                // Another file has this name now.
                EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                    writer.open.retain(|open| !files.contains(open));
                }
                EventKind::Any | EventKind::Modify(_) | EventKind::Other => {}
            }
        }
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::control::{CommandReceiver, ControlCommand, ReloadOutcome, ReloadReport};

    /// Shorter than [`POLL_INTERVAL`]: a change noticed within it was noticed by its event.
    const NOTICED_WITHIN: Duration = Duration::from_secs(50);

    struct WatchedDirectory {
        directory: tempfile::TempDir,
        commands: CommandReceiver,
        templates: watch::Sender<Vec<PathBuf>>,
        _watching: AbortOnDropHandle<()>,
    }

    impl WatchedDirectory {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("orderd.toml"), "old").unwrap();
            Self::of(directory).await
        }

        async fn of(directory: tempfile::TempDir) -> Self {
            let (control, commands) = Control::new();
            let (templates, named) = watch::channel(Vec::new());
            let watcher = ConfigWatcher::new(directory.path().join("orderd.toml"), named).await;
            let watching = tokio::spawn(watcher.run(control, Shutdown::new()));
            WatchedDirectory { directory, commands, templates, _watching: AbortOnDropHandle::new(watching) }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// The file's content when a reload is requested; the reload succeeds.
        async fn reloaded(&mut self) -> String {
            self.reloaded_with(ReloadOutcome::Applied, false).await
        }

        /// The file's content when a reload is requested; the reload ends as given.
        async fn reloaded_with(&mut self, outcome: ReloadOutcome, temporary: bool) -> String {
            let command = timeout(NOTICED_WITHIN, self.commands.recv()).await.expect("noticed in time");
            let Some(ControlCommand::Reload { by: "file", answer, .. }) = command else { panic!("{command:?}") };
            let content = fs::read_to_string(self.path("orderd.toml")).unwrap();
            let (changes, problems, notes) = (Vec::new(), Vec::new(), Vec::new());
            let applied_after_ms = None;
            let report = ReloadReport { outcome, generation: 2, changes, applied_after_ms, problems, temporary, notes };
            let _ = answer.send(Ok(report));
            content
        }

        /// Waits twice as long as a file must stay unchanged.
        async fn assert_no_reload(&mut self) {
            let command = timeout(2 * QUIET_PERIOD, self.commands.recv()).await;
            assert!(command.is_err(), "{command:?}");
        }
    }

    #[tokio::test]
    async fn a_file_renamed_over_it_is_reloaded_once() {
        let mut directory = WatchedDirectory::new().await;
        for content in ["new", "newer"] {
            fs::write(directory.path(".orderd.toml.swp"), content).unwrap();
            fs::rename(directory.path(".orderd.toml.swp"), directory.path("orderd.toml")).unwrap();
            assert_eq!(directory.reloaded().await, content);
            directory.assert_no_reload().await;
        }
    }

    #[tokio::test]
    async fn a_file_moved_away_and_written_again_is_reloaded_when_it_is_back() {
        let mut directory = WatchedDirectory::new().await;
        fs::rename(directory.path("orderd.toml"), directory.path("orderd.toml~")).unwrap();
        directory.assert_no_reload().await;
        fs::write(directory.path("orderd.toml"), "new").unwrap();
        assert_eq!(directory.reloaded().await, "new");
    }

    #[tokio::test]
    async fn a_file_written_in_pieces_is_reloaded_once_it_is_closed() {
        let mut directory = WatchedDirectory::new().await;
        let mut file = fs::File::create(directory.path("orderd.toml")).unwrap();
        for _ in 0..3 {
            file.write_all(b"a piece, ").unwrap();
            file.flush().unwrap();
            directory.assert_no_reload().await;
        }
        file.write_all(b"the end").unwrap();
        drop(file);
        assert_eq!(directory.reloaded().await, "a piece, a piece, a piece, the end");
    }

    #[tokio::test]
    async fn a_replaced_link_to_the_directory_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for version in ["..1", "..2", "..3"] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("orderd.toml"), version).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/orderd.toml", path("orderd.toml")).unwrap();
        let mut directory = WatchedDirectory::of(directory).await;
        for version in ["..2", "..3"] {
            symlink(version, directory.path("..data_tmp")).unwrap();
            fs::rename(directory.path("..data_tmp"), directory.path("..data")).unwrap();
            assert_eq!(directory.reloaded().await, version);
        }
        // The directory it leads to now is watched too.
        fs::write(directory.path("..3/orderd.toml"), "in place").unwrap();
        assert_eq!(directory.reloaded().await, "in place");
    }

    #[tokio::test]
    async fn a_change_of_another_file_in_the_directory_is_ignored() {
        let mut directory = WatchedDirectory::new().await;
        fs::write(directory.path("other.toml"), "x").unwrap();
        assert_eq!(fs::read_to_string(directory.path("orderd.toml")).unwrap(), "old");
        directory.assert_no_reload().await;
    }

    #[tokio::test]
    async fn a_template_that_is_changed_added_or_removed_is_reloaded_and_an_editors_backup_is_not() {
        let mut directory = WatchedDirectory::new().await;
        let root = directory.path("templates");
        fs::create_dir_all(root.join("en")).unwrap();
        fs::write(root.join("en/processed.txt"), "one").unwrap();
        // As when the configuration names the directory from now on.
        directory.templates.send_replace(vec![root.clone()]);
        directory.reloaded().await;
        fs::write(root.join("en/processed.txt"), "another").unwrap();
        directory.reloaded().await;
        fs::write(root.join("en/new"), "renamed").unwrap();
        fs::rename(root.join("en/new"), root.join("en/processed.txt")).unwrap();
        directory.reloaded().await;
        fs::create_dir(root.join("de")).unwrap();
        fs::write(root.join("de/shipped.html"), "added").unwrap();
        directory.reloaded().await;
        fs::write(root.join("de/shipped.html"), "in a new folder").unwrap();
        directory.reloaded().await;
        fs::write(root.join("en/processed.txt~"), "backup").unwrap();
        fs::write(root.join("en/.processed.txt.swp"), "backup").unwrap();
        directory.assert_no_reload().await;
        fs::remove_file(root.join("en/processed.txt")).unwrap();
        directory.reloaded().await;
        fs::remove_dir_all(&root).unwrap();
        directory.reloaded().await;
        directory.assert_no_reload().await;
    }

    #[tokio::test]
    async fn only_a_file_rejected_for_a_temporary_reason_is_tried_again() {
        let mut directory = WatchedDirectory::new().await;
        // A change of another file triggers a check before the next poll.
        let trigger_check = |directory: &WatchedDirectory| fs::write(directory.path("other.toml"), "x").unwrap();
        fs::write(directory.path("orderd.toml"), "while the broker is away").unwrap();
        for _ in 0..2 {
            assert_eq!(directory.reloaded_with(ReloadOutcome::Rejected, true).await, "while the broker is away");
            trigger_check(&directory);
        }
        assert_eq!(directory.reloaded().await, "while the broker is away");
        fs::write(directory.path("orderd.toml"), "wrong").unwrap();
        assert_eq!(directory.reloaded_with(ReloadOutcome::Rejected, false).await, "wrong");
        trigger_check(&directory);
        directory.assert_no_reload().await;
    }

    #[tokio::test]
    async fn a_missing_directory_is_not_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (_named, none) = watch::channel(Vec::new());
        let mut watcher = ConfigWatcher::new(directory.path().join("later/orderd.toml"), none).await;
        assert_eq!(watcher.changed_files().await, None);
    }
}
