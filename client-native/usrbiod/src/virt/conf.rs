//! What `get-conf` shows and `set-conf` changes.
//!
//! The keys are those of 3FS, so that its users' scripts go on working. Here `readonly` acts; the others steer parts that
//! 3FS has and this daemon has not: they are checked, stored and read back. Settings outlive the process.

use crate::state::SessionState;
use crate::state::records::ConfRec;
use crate::types::{Errno, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

/// Whose a setting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scope {
    User(u32),
    /// Everybody's; only root may set it.
    System,
}

/// What values a key takes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Bool,
    /// Seconds with a fraction.
    Seconds,
    /// From 1.
    Count {
        max: u32,
    },
    /// A number with a unit.
    Duration,
}

/// A key as it is named in `get-conf` and `set-conf`.
struct Key {
    name: &'static str,
    kind: Kind,
    default: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, default }
}

const READONLY: &str = "usr.readonly";

/// Defaults are those of 3FS.
const KEYS: [Key; 17] = [
    key("usr.enable_read_cache", Kind::Bool, "true"),
    key(READONLY, Kind::Bool, "false"),
    key("usr.dryrun_bench_mode", Kind::Bool, "false"),
    key("usr.flush_on_stat", Kind::Bool, "true"),
    key("usr.sync_on_stat", Kind::Bool, "true"),
    key("usr.attr_timeout", Kind::Seconds, "30"),
    key("usr.entry_timeout", Kind::Seconds, "30"),
    key("usr.negative_timeout", Kind::Seconds, "5"),
    key("usr.symlink_timeout", Kind::Seconds, "5"),
    // Twice what 3FS configures is the most that it takes.
    key("sys.storage.net_client.rdma_control.max_concurrent_transmission", Kind::Count { max: 128 }, "64"),
    key("sys.periodic_sync.enable", Kind::Bool, "true"),
    key("sys.periodic_sync.interval", Kind::Duration, "30s"),
    key("sys.periodic_sync.flush_write_buf", Kind::Bool, "true"),
    key("sys.io_worker_coros.hi", Kind::Count { max: 65_536 }, "8"),
    key("sys.io_worker_coros.lo", Kind::Count { max: 65_536 }, "8"),
    key("sys.max_jobs_per_ioring", Kind::Count { max: 65_536 }, "32"),
    key("sys.io_job_deq_timeout", Kind::Duration, "1ms"),
];

struct Setting {
    value: String,
    record: u32,
}

/// Settings of one session: those of each user, and those that only root may set.
pub struct UserConf {
    state: Arc<SessionState>,
    read_only: bool,
    settings: RwLock<HashMap<(Scope, usize), Setting>>,
    /// How many users turned `readonly` on. Every change through FUSE asks: mostly it is 0.
    restricted: AtomicUsize,
}

impl UserConf {
    /// The settings in `state`. `read_only`: the session refuses changes, whatever users set.
    pub fn new(state: Arc<SessionState>, read_only: bool) -> UserConf {
        let mut settings = HashMap::new();
        for (record, found) in state.settings.iter() {
            if let Some((place, value)) = from_record(&found) {
                settings.insert(place, Setting { value, record });
            }
        }
        let conf =
            UserConf { state, read_only, settings: RwLock::new(settings), restricted: AtomicUsize::new(0) };
        conf.restricted.store(conf.read_only_users().len(), Ordering::Relaxed);
        conf
    }

    /// Is this user, or the session, read-only? Writes of rings and every change through FUSE then answer `EROFS`.
    pub fn read_only(&self, uid: u32) -> bool {
        self.read_only
            || self.restricted.load(Ordering::Relaxed) > 0
                && find(READONLY).is_some_and(|key| self.value(key, uid) == "true")
    }

    /// Users that turned `readonly` on.
    pub(super) fn read_only_users(&self) -> Vec<u32> {
        let restricted = |((scope, key), setting): (&(Scope, usize), &Setting)| match scope {
            Scope::User(uid) if is_readonly(*key, &setting.value) => Some(*uid),
            _ => None,
        };
        self.read().iter().filter_map(restricted).collect()
    }

    /// Names of all keys, in a fixed order: the place is the key's number.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        KEYS.iter().map(|key| key.name)
    }

    /// The value that user `uid` has for key number `key`. `ENOENT`: there is no such key.
    pub(super) fn get(&self, key: usize, uid: u32) -> Result<String> {
        if key < KEYS.len() { Ok(self.value(key, uid)) } else { Err(Errno::NOENT) }
    }

    fn value(&self, key: usize, uid: u32) -> String {
        if self.read_only && KEYS[key].name == READONLY {
            return "true".to_owned();
        }
        let place = (scope(key, uid), key);
        self.read().get(&place).map_or_else(|| KEYS[key].default.to_owned(), |s| s.value.clone())
    }

    /// Sets a key. `EINVAL`: there is no such key, or the value is none of it. `EPERM`: only root may. `ENOSPC`: too many
    /// users have settings.
    pub(super) fn set(&self, name: &str, value: &str, uid: u32) -> Result<()> {
        let key = find(name).ok_or(Errno::INVAL)?;
        let place = (scope(key, uid), key);
        if place.0 == Scope::System && uid != 0 {
            return Err(Errno::PERM);
        }
        check(KEYS[key].kind, value)?;
        if self.read_only && KEYS[key].name == READONLY && value != "true" {
            return Err(Errno::INVAL); // as 3FS answers to who wants to turn off what is on for all
        }
        let rec = to_record(place, value);
        let mut settings = self.settings.write().unwrap_or_else(|e| e.into_inner());
        let record = match settings.get(&place) {
            Some(old) => {
                self.state.settings.put(old.record, &rec);
                old.record
            }
            None => self.state.settings.insert(&rec).ok_or(Errno::NOSPC)?,
        };
        let old = settings.insert(place, Setting { value: value.to_owned(), record });
        let was = old.is_some_and(|old| is_readonly(key, &old.value));
        match (was, is_readonly(key, value)) {
            (false, true) => self.restricted.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.restricted.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<(Scope, usize), Setting>> {
        self.settings.read().unwrap_or_else(|e| e.into_inner())
    }
}

fn find(name: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.name == name)
}

fn scope(key: usize, uid: u32) -> Scope {
    if KEYS[key].name.starts_with("sys.") { Scope::System } else { Scope::User(uid) }
}

fn is_readonly(key: usize, value: &str) -> bool {
    KEYS[key].name == READONLY && value == "true"
}

fn check(kind: Kind, value: &str) -> Result<()> {
    let right = match kind {
        Kind::Bool => matches!(value, "true" | "false"),
        Kind::Seconds => digits_and_dot(value) && value.parse().is_ok_and(|s: f64| s <= 86_400.0),
        Kind::Count { max } => {
            digits_and_dot(value) && value.parse().is_ok_and(|n: u32| (1..=max).contains(&n))
        }
        Kind::Duration => {
            let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = &value[number.len()..];
            matches!(unit, "ns" | "us" | "ms" | "s" | "min" | "h") && number.parse::<u32>().is_ok()
        }
    };
    if right && value.len() <= size_of_val(&EMPTY.value) { Ok(()) } else { Err(Errno::INVAL) }
}

/// What `f64::from_str` takes besides, `inf` and `1e9`, is no number of seconds.
fn digits_and_dot(value: &str) -> bool {
    value.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

const EMPTY: ConfRec =
    ConfRec { tag: 0, uid: 0, key_len: 0, value_len: 0, key: [0; 72], value: [0; 40], spare: [0; 4] };

fn to_record((scope, key): (Scope, usize), value: &str) -> ConfRec {
    let (tag, uid) = match scope {
        Scope::User(uid) => (1, uid),
        Scope::System => (2, 0),
    };
    let name = KEYS[key].name;
    let mut rec = ConfRec { tag, uid, key_len: name.len() as u32, value_len: value.len() as u32, ..EMPTY };
    rec.key[..name.len()].copy_from_slice(name.as_bytes());
    rec.value[..value.len()].copy_from_slice(value.as_bytes());
    rec
}

fn from_record(rec: &ConfRec) -> Option<((Scope, usize), String)> {
    let name = rec.key.get(..rec.key_len as usize)?;
    let key = find(std::str::from_utf8(name).ok()?)?;
    let value = std::str::from_utf8(rec.value.get(..rec.value_len as usize)?).ok()?;
    check(KEYS[key].kind, value).ok()?;
    Some(((scope(key, rec.uid), key), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf() -> UserConf {
        UserConf::new(Arc::new(SessionState::anonymous().unwrap()), false)
    }

    fn shown(conf: &UserConf, name: &str, uid: u32) -> String {
        conf.get(find(name).unwrap(), uid).unwrap()
    }

    #[test]
    fn a_key_fits_a_record() {
        assert!(UserConf::names().all(|name| name.len() <= EMPTY.key.len()));
    }

    #[test]
    fn a_user_sets_what_only_that_user_sees() {
        let conf = conf();
        conf.set("usr.readonly", "true", 7).unwrap();
        assert!(conf.read_only(7) && !conf.read_only(8) && !conf.read_only(0));
        assert_eq!((shown(&conf, READONLY, 7), shown(&conf, READONLY, 8)), ("true".into(), "false".into()));
        for _ in 0..2 {
            conf.set("usr.readonly", "false", 7).unwrap();
            assert!(!conf.read_only(7));
        }
        assert_eq!(conf.restricted.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_root_sets_what_all_see() {
        let conf = conf();
        assert_eq!(conf.set("sys.periodic_sync.interval", "5s", 7), Err(Errno::PERM));
        assert_eq!(conf.set("sys.periodic_sync.interval", "5s", 0), Ok(()));
        assert_eq!(shown(&conf, "sys.periodic_sync.interval", 7), "5s");
    }

    #[test]
    fn keys_and_values_that_are_none_are_refused() {
        let conf = conf();
        let bad = [
            ("readonly", "true"),
            ("usr.nothing", "1"),
            ("usr.readonly", "yes"),
            ("usr.attr_timeout", "-1"),
            ("usr.attr_timeout", "inf"),
            ("usr.attr_timeout", "0.0000000000000000000000000000000000000000000001"),
            ("sys.io_job_deq_timeout", "5"),
            ("sys.io_job_deq_timeout", "s"),
            ("sys.io_worker_coros.hi", "0"),
            ("sys.storage.net_client.rdma_control.max_concurrent_transmission", "129"),
        ];
        for (key, value) in bad {
            assert_eq!(conf.set(key, value, 0), Err(Errno::INVAL), "{key}={value}");
        }
        assert_eq!(conf.set("usr.attr_timeout", "0.5", 0), Ok(()));
    }

    #[test]
    fn a_read_only_session_cannot_be_made_writable_by_a_user() {
        let conf = UserConf::new(Arc::new(SessionState::anonymous().unwrap()), true);
        assert_eq!(conf.set("usr.readonly", "false", 7), Err(Errno::INVAL));
        assert!(conf.read_only(7));
        assert_eq!(shown(&conf, READONLY, 7), "true");
    }

    #[test]
    fn a_successor_knows_the_settings() {
        let state = Arc::new(SessionState::anonymous().unwrap());
        let first = UserConf::new(state.clone(), false);
        first.set("usr.readonly", "true", 7).unwrap();
        first.set("usr.attr_timeout", "1.5", 7).unwrap();
        let second = UserConf::new(state, false);
        assert!(second.read_only(7) && !second.read_only(8));
        assert_eq!(second.read_only_users(), [7]);
        assert_eq!(shown(&second, "usr.attr_timeout", 7), "1.5");
    }
}
