//! Follows the configuration file of a running daemon: one that was changed is reloaded by itself.
//!
//! The directories that lead to it are watched rather than the file: editors and orchestrators put another file or
//! link in its place. Events only say that it is time to look; what counts is whether the path leads to another
//! file, or to the same one with other times or another length. It never reads the file.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::control::{Control, ControlError};
use crate::shutdown::Shutdown;

/// How long a changed file must rest before it is reloaded.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a writer that keeps the file open is waited for. Then it is looked at as it is.
const WRITER: Duration = Duration::from_secs(60);
/// How often it is looked at without any event: some file systems send none, and directories can be replaced. And how
/// often one is tried that was rejected for what passes.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The wait before the daemon is asked again to reload, while it is starting.
const AGAIN: Duration = Duration::from_secs(1);
/// Most links on the way to a file, as Linux has it.
const MOST_LINKS: usize = 40;

/// Follows one file.
pub struct Follower {
    path: PathBuf,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<Place>,
    stir: Arc<Stir>,
    /// What was reloaded last, or was there at the start.
    reloaded: Option<Print>,
}

/// A directory that is watched: its path, and which directory that is.
type Place = (PathBuf, u64, u64);
/// Which file, its length, and when its content and it itself were changed.
type Print = (PathBuf, u64, u64, u64, (i64, i64), (i64, i64));

/// What events have told.
#[derive(Debug, Default)]
struct Stir {
    /// Something has happened in one of the directories.
    happened: Notify,
    state: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    /// The file without links.
    target: PathBuf,
    /// Whether somebody has written to it and not closed it yet.
    is_open: bool,
}

impl Follower {
    /// Begins to watch. That it cannot is logged; the file is then looked at now and then.
    pub async fn new(path: PathBuf) -> Self {
        let stir = Arc::<Stir>::default();
        let told = Arc::clone(&stir);
        let watcher = notify::recommended_watcher(move |event| told.tell(event));
        let watcher = watcher.inspect_err(|error| cannot_watch(&path, error)).ok();
        let mut follower = Follower { path, watcher, watched: BTreeSet::new(), stir, reloaded: None };
        follower.reloaded = follower.look().await;
        follower
    }

    /// Reloads whenever the file has changed, until a shutdown.
    pub async fn run(mut self, control: Control, shutdown: Shutdown) {
        info!(path = %self.path.display(), "following the configuration file");
        // Cancel-safe: whoever is told of the reload goes on without being asked.
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.follow(&control) => {}
        }
    }

    async fn follow(&mut self, control: &Control) {
        loop {
            // Cancel-safe: both only wait, and an event that is not noticed here is noticed by the next look.
            tokio::select! {
                () = self.stir.happened.notified() => {}
                () = sleep(LOOK_EVERY) => {}
            }
            while let Some(changed) = self.changed().await {
                match control.reload("file").await {
                    Ok(verdict) if verdict.passing => break,
                    Ok(_) => self.reloaded = Some(changed),
                    // Starting; or stopping, which ends this too.
                    Err(ControlError::NotNow) => sleep(AGAIN).await,
                    Err(error) => {
                        warn!(%error, "the changed configuration file was not reloaded");
                        self.reloaded = Some(changed);
                    }
                }
            }
        }
    }

    /// The file, if it is not the one reloaded last; once it rests and nobody who wrote to it has it open.
    async fn changed(&mut self) -> Option<Print> {
        let begun = Instant::now();
        let mut last = self.look().await?;
        while Some(&last) != self.reloaded.as_ref() {
            sleep(SETTLE).await;
            // A file that is away for good is nothing to reload; what was reloaded stays in force.
            let now = self.look().await?;
            let is_open = self.stir.state().is_open && begun.elapsed() < WRITER;
            if now == last && !is_open {
                return Some(now);
            }
            last = now;
        }
        None
    }

    /// Looks where the path leads, and watches the directories on the way there.
    async fn look(&mut self) -> Option<Print> {
        let path = self.path.clone();
        let looking = spawn_blocking(move || (places(&path), print(&path)));
        let (places, print) = looking.await.expect("looking at a file neither panics nor is it cancelled");
        if let Some((target, ..)) = &print {
            self.stir.state().target.clone_from(target);
        }
        self.watch(places);
        print
    }

    fn watch(&mut self, places: BTreeSet<Place>) {
        let Some(watcher) = &mut self.watcher else { return };
        for (directory, ..) in self.watched.difference(&places) {
            // It may be gone, and its watch with it.
            let _ = watcher.unwatch(directory);
        }
        for (directory, ..) in places.difference(&self.watched) {
            if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                cannot_watch(directory, &error);
            }
        }
        self.watched = places;
    }
}

fn cannot_watch(path: &Path, error: &notify::Error) {
    warn!(path = %path.display(), %error, every = ?LOOK_EVERY, "cannot watch for a changed configuration file; looking at it instead");
}

impl Stir {
    fn state(&self) -> std::sync::MutexGuard<'_, Written> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: notify::Result<Event>) {
        if let Ok(event) = event {
            let mut state = self.state();
            let ours = event.paths.contains(&state.target);
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) if ours => state.is_open = false,
                // Whoever only reads changes nothing, orderd itself included.
                EventKind::Access(_) => return,
                EventKind::Modify(ModifyKind::Data(_)) if ours => state.is_open = true,
                // Another file has its name now.
                EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) if ours => {
                    state.is_open = false;
                }
                EventKind::Any
                | EventKind::Create(_)
                | EventKind::Modify(_)
                | EventKind::Remove(_)
                | EventKind::Other => {}
            }
        }
        self.happened.notify_one();
    }
}

/// The directories in which something must change for the path to lead elsewhere: that of each link on the way, and
/// that of the file. Those that are not there are left out.
fn places(path: &Path) -> BTreeSet<Place> {
    let mut places = BTreeSet::new();
    let Ok(mut path) = std::path::absolute(path) else { return places };
    for _ in 0..MOST_LINKS {
        let link = links(&path);
        let entry = link.as_ref().map_or(&path, |(link, _)| link);
        let parent = entry.parent().unwrap_or(entry).to_owned();
        if let (Ok(directory), Ok(is)) = (fs::canonicalize(&parent), fs::metadata(&parent)) {
            places.insert((directory, is.dev(), is.ino()));
        }
        let Some((link, rest)) = link else { break };
        let Ok(target) = fs::read_link(&link) else { break };
        path = parent.join(target).join(rest);
    }
    places
}

/// The first link in a path, and what follows it.
fn links(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut components = path.components();
    let mut prefix = PathBuf::new();
    while let Some(component) = components.next() {
        prefix.push(component);
        if prefix.is_symlink() {
            return Some((prefix, components.as_path().to_owned()));
        }
    }
    None
}

/// What a path leads to; none if that is nothing.
fn print(path: &Path) -> Option<Print> {
    let read = || -> io::Result<Print> {
        let (target, is) = (fs::canonicalize(path)?, fs::metadata(path)?);
        Ok((target, is.dev(), is.ino(), is.size(), (is.mtime(), is.mtime_nsec()), (is.ctime(), is.ctime_nsec())))
    };
    read().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::control::{Command, Commands, Outcome, ReloadReport};

    /// Shorter than [`LOOK_EVERY`]: what is noticed within it was noticed by its event.
    const NOTICED_WITHIN: Duration = Duration::from_secs(50);

    struct Scene {
        directory: tempfile::TempDir,
        commands: Commands,
        _following: AbortOnDropHandle<()>,
    }

    impl Scene {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("orderd.toml"), "old").unwrap();
            Self::of(directory).await
        }

        async fn of(directory: tempfile::TempDir) -> Self {
            let (control, commands) = Control::new();
            let follower = Follower::new(directory.path().join("orderd.toml")).await;
            let following = tokio::spawn(follower.run(control, Shutdown::new()));
            Scene { directory, commands, _following: AbortOnDropHandle::new(following) }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// What is in the file when a reload is asked for, which is then done.
        async fn reloaded(&mut self) -> String {
            self.asked(Outcome::Applied, false).await
        }

        /// What is in the file when a reload is asked for, and that is the answer.
        async fn asked(&mut self, outcome: Outcome, passing: bool) -> String {
            let command = timeout(NOTICED_WITHIN, self.commands.recv()).await.expect("noticed in time");
            let Some(Command::Reload { by: "file", answer }) = command else { panic!("{command:?}") };
            let content = fs::read_to_string(self.path("orderd.toml")).unwrap();
            let (changes, problems, notes) = (Vec::new(), Vec::new(), Vec::new());
            let _ = answer.send(ReloadReport { outcome, generation: 2, changes, problems, passing, notes });
            content
        }

        /// Waits for longer than a file must rest, twice over.
        async fn assert_nothing_is_asked(&mut self) {
            let asked = timeout(2 * SETTLE, self.commands.recv()).await;
            assert!(asked.is_err(), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_over_it_is_reloaded_once() {
        let mut scene = Scene::new().await;
        for content in ["new", "newer"] {
            fs::write(scene.path(".orderd.toml.swp"), content).unwrap();
            fs::rename(scene.path(".orderd.toml.swp"), scene.path("orderd.toml")).unwrap();
            assert_eq!(scene.reloaded().await, content);
            scene.assert_nothing_is_asked().await;
        }
    }

    #[tokio::test]
    async fn a_file_that_is_moved_away_and_written_anew_is_reloaded_when_it_is_back() {
        let mut scene = Scene::new().await;
        fs::rename(scene.path("orderd.toml"), scene.path("orderd.toml~")).unwrap();
        scene.assert_nothing_is_asked().await;
        fs::write(scene.path("orderd.toml"), "new").unwrap();
        assert_eq!(scene.reloaded().await, "new");
    }

    #[tokio::test]
    async fn whoever_writes_in_pieces_is_waited_for() {
        let mut scene = Scene::new().await;
        let mut file = fs::File::create(scene.path("orderd.toml")).unwrap();
        for _ in 0..3 {
            file.write_all(b"a piece, ").unwrap();
            file.flush().unwrap();
            scene.assert_nothing_is_asked().await;
        }
        file.write_all(b"the end").unwrap();
        drop(file);
        assert_eq!(scene.reloaded().await, "a piece, a piece, a piece, the end");
    }

    #[tokio::test]
    async fn a_link_to_the_directory_that_is_swapped_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for version in ["..1", "..2", "..3"] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("orderd.toml"), version).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/orderd.toml", path("orderd.toml")).unwrap();
        let mut scene = Scene::of(directory).await;
        for version in ["..2", "..3"] {
            symlink(version, scene.path("..data_tmp")).unwrap();
            fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
            assert_eq!(scene.reloaded().await, version);
        }
        // The directory it leads to now is watched too.
        fs::write(scene.path("..3/orderd.toml"), "in place").unwrap();
        assert_eq!(scene.reloaded().await, "in place");
    }

    #[tokio::test]
    async fn what_happens_beside_it_is_none_of_its_business() {
        let mut scene = Scene::new().await;
        fs::write(scene.path("other.toml"), "x").unwrap();
        assert_eq!(fs::read_to_string(scene.path("orderd.toml")).unwrap(), "old");
        scene.assert_nothing_is_asked().await;
    }

    #[tokio::test]
    async fn only_what_was_rejected_for_what_passes_is_tried_again() {
        let mut scene = Scene::new().await;
        // What happens beside it has it look again, before it would by itself.
        let stir = |scene: &Scene| fs::write(scene.path("other.toml"), "x").unwrap();
        fs::write(scene.path("orderd.toml"), "while the broker is away").unwrap();
        for _ in 0..2 {
            assert_eq!(scene.asked(Outcome::Rejected, true).await, "while the broker is away");
            stir(&scene);
        }
        assert_eq!(scene.reloaded().await, "while the broker is away");
        fs::write(scene.path("orderd.toml"), "wrong").unwrap();
        assert_eq!(scene.asked(Outcome::Rejected, false).await, "wrong");
        stir(&scene);
        scene.assert_nothing_is_asked().await;
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_yet_is_no_fault() {
        let directory = tempfile::tempdir().unwrap();
        let mut follower = Follower::new(directory.path().join("later/orderd.toml")).await;
        assert_eq!(follower.changed().await, None);
    }
}
