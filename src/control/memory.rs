//! What a pool remembers over restarts of rolegate: one small file a pool.
//!
//! A file is replaced as a whole, so a crash leaves the old or the new one. One that cannot be used
//! is reported and ignored: without it a pool knows less, and refuses where it would have known.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::spawn_blocking, time::timeout};
use tracing::{info, warn};

use super::election::Memory;

/// No file is larger, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// From one failed write to the next.
const RETRY: Duration = Duration::from_secs(5);

/// The format of the files.
const VERSION: u32 = 1;

/// The file of one pool.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pool: Arc<str>,
    folder: PathBuf,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Record {
    version: u32,
    pool: String,
    /// The served backend's name, which is more lasting than its place.
    backend: String,
    run_id: String,
    replids: Vec<String>,
    ancestors: Vec<String>,
    epoch: Option<u64>,
    /// Other backends' names and replids.
    #[serde(default)]
    strays: Vec<(String, String)>,
}

impl Store {
    pub(super) fn new(folder: &Path, pool: Arc<str>) -> Self {
        Self { pool, folder: folder.to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.folder.join(format!("pool-{}.json", self.pool))
    }

    /// What was saved last, if it is of use for a pool of these backends.
    pub(super) fn load(&self, backends: &[Arc<str>]) -> Option<Memory> {
        let pool = &*self.pool;
        let file = self.file().display().to_string();
        let unusable = |error: String| {
            let advice = "rolegate goes on without it and writes a new one";
            warn!(pool, file, error, advice, "cannot use the state file");
        };
        let bytes = match read(&self.file()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                unusable(error.to_string());
                return None;
            }
        };
        match self.decode(&bytes, backends) {
            Ok(memory) => {
                let backend = &*backends[memory.place];
                info!(pool, file, backend, run_id = memory.run_id, "remembers the last master");
                Some(memory)
            }
            Err(error) => {
                unusable(error);
                None
            }
        }
    }

    fn decode(&self, bytes: &[u8], backends: &[Arc<str>]) -> Result<Memory, String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("it has version {}, not {VERSION}", record.version));
        }
        if record.pool != *self.pool {
            return Err("it is of another pool".to_owned());
        }
        let place = backends.iter().position(|name| **name == *record.backend);
        let place = place.ok_or("its backend is not in the config any more")?;
        let Record { run_id, replids, ancestors, epoch, strays, .. } = record;
        let stray = |(name, replid): (String, String)| {
            Some((backends.iter().position(|backend| **backend == *name)?, replid))
        };
        let strays = strays.into_iter().filter_map(stray).collect();
        Ok(Memory { place, run_id, replids, ancestors, epoch, strays })
    }

    fn encode(&self, memory: &Memory, backends: &[Arc<str>]) -> Vec<u8> {
        let stray =
            |(place, replid): &(usize, String)| (backends[*place].to_string(), replid.clone());
        let record = Record {
            version: VERSION,
            pool: self.pool.to_string(),
            backend: backends[memory.place].to_string(),
            run_id: memory.run_id.clone(),
            replids: memory.replids.clone(),
            ancestors: memory.ancestors.clone(),
            epoch: memory.epoch,
            strays: memory.strays.iter().map(stray).collect(),
        };
        serde_json::to_vec_pretty(&record).unwrap_or_default()
    }

    fn save(&self, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        // Two processes may save at once while one takes over from the other.
        let draft = self.folder.join(format!(".pool-{}.json.{}", self.pool, std::process::id()));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A new file, so that a link in its place leads nowhere.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, self.file())?;
        File::open(&self.folder)?.sync_all()
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    // To open a pipe would wait for its writer.
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Saves a pool's memory whenever it changes, on threads that may block.
#[derive(Debug)]
pub(super) struct Saver {
    store: Store,
    latest: watch::Sender<Vec<u8>>,
}

impl Saver {
    pub(super) fn new(store: Store) -> Self {
        Self { store, latest: watch::Sender::new(Vec::new()) }
    }

    /// Hands the memory over; what was handed over before and is not written yet is dropped.
    pub(super) fn save(&self, memory: &Memory, backends: &[Arc<str>]) {
        self.latest.send_replace(self.store.encode(memory, backends));
    }

    /// Writes what is handed over, until the saver is gone. A write that fails is tried again; the
    /// pool goes on without.
    pub(super) fn run(&self) -> impl Future<Output = ()> + Send + 'static {
        let (store, mut latest) = (self.store.clone(), self.latest.subscribe());
        async move {
            let mut failing = false;
            loop {
                let changed = latest.changed();
                let changed =
                    if failing { timeout(RETRY, changed).await } else { Ok(changed.await) };
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
                let bytes = latest.borrow_and_update().clone();
                let (writer, pool) = (store.clone(), &*store.pool);
                let saved = spawn_blocking(move || writer.save(&bytes)).await;
                match saved.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
                    Ok(()) => {
                        if failing {
                            info!(pool, "saves state again");
                        }
                        failing = false;
                    }
                    Err(error) => {
                        if !failing {
                            let (file, error) = (store.file(), error.to_string());
                            let advice = "is state_dir writable, and its disk full? a restart now would know less of this pool";
                            warn!(pool, file = %file.display(), error, advice, "cannot save state");
                        }
                        failing = true;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> [Arc<str>; 2] {
        ["a".into(), "b".into()]
    }

    fn memory() -> Memory {
        Memory {
            place: 1,
            run_id: "r".into(),
            replids: vec!["x".into(), "y".into()],
            ancestors: vec!["w".into()],
            epoch: Some(3),
            strays: vec![(0, "z".into())],
        }
    }

    fn store(folder: &Path) -> Store {
        Store::new(folder, "main".into())
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder.path().join("not/there/yet"));
        assert_eq!(store.load(&names()), None);
        store.save(&store.encode(&memory(), &names())).unwrap();
        assert_eq!(store.load(&names()), Some(memory()));
        store.save(&store.encode(&Memory { epoch: None, ..memory() }, &names())).unwrap();
        assert_eq!(store.load(&names()), Some(Memory { epoch: None, ..memory() }));
        assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 1);
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.save(&store.encode(&memory(), &names())).unwrap();
        fs::write(folder.path().join(".pool-main.json.new"), b"{\"version\":").unwrap();
        assert_eq!(store.load(&names()), Some(memory()));
    }

    #[test]
    fn a_file_of_another_pool_or_backend_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let other = Store::new(folder.path(), "other".into());
        fs::write(store.file(), other.encode(&memory(), &names())).unwrap();
        assert_eq!(store.load(&names()), None);
        fs::write(store.file(), store.encode(&memory(), &["a".into(), "c".into()])).unwrap();
        assert_eq!(store.load(&names()), None);
    }

    #[test]
    fn every_truncation_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let whole = store.encode(&memory(), &names());
        for length in 0..whole.len() {
            assert!(store.decode(&whole[..length], &names()).is_err(), "{length}");
        }
        fs::write(store.file(), vec![b' '; 100_000]).unwrap();
        assert_eq!(store.load(&names()), None);
    }

    proptest! {
        #[test]
        fn no_file_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = store(Path::new("x")).decode(&bytes, &names());
        }
    }
}
