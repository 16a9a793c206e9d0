//! File descriptors: each connection takes one, and what the journal, the outputs and the admin port need must not be what is missing. Most
//! systems give a program 1,024 and let it ask for more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Not for connections of the public port: journal and its readers (some ten), the admin port's 128, those to brokers, files of secrets and
/// certificates while they are read, connections told to go that are not gone yet.
const RESERVED: u64 = 320;

/// How many connections there may be so that the descriptors suffice: `wanted`, or fewer if the limit of open files cannot be raised so
/// far, which is logged. At least one.
pub fn connections_max(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = (wanted as u64).saturating_add(RESERVED);
    let raised = raised(limit, needed);
    // An unlimited one is `None`.
    let granted = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limit.current,
    };
    let possible = possible(granted, wanted);
    if possible < wanted {
        warn!(
            "ingress.connections_max is {wanted}, but the limit of open files ({}) leaves room for {possible} connections; raise it (`ulimit -n`, \
             LimitNOFILE= of systemd)",
            granted.unwrap_or_default()
        );
    }
    possible
}

/// The soft limit as high as is needed and allowed, never lower than it is.
fn raised(limit: Rlimit, needed: u64) -> Rlimit {
    let current = limit.current.map(|current| current.max(limit.maximum.map_or(needed, |hard| needed.min(hard))));
    Rlimit { current, maximum: limit.maximum }
}

/// Where the limit is too low for both, half of it is for connections.
fn possible(limit: Option<u64>, wanted: usize) -> usize {
    let Some(limit) = limit else { return wanted };
    let left = limit - RESERVED.min(limit / 2);
    usize::try_from(left).unwrap_or(usize::MAX).clamp(1, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_is_needed_and_allowed() {
        let after = |current, maximum, needed| raised(Rlimit { current, maximum }, needed).current;
        assert_eq!(after(Some(1024), Some(524_288), 4416), Some(4416));
        assert_eq!(after(Some(1024), Some(4096), 4416), Some(4096));
        assert_eq!(after(Some(20_000), Some(20_000), 4416), Some(20_000), "never lower");
        assert_eq!(after(Some(1024), None, 4416), Some(4416));
        assert_eq!(after(None, None, 4416), None);
    }

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        assert_eq!(possible(Some(4416), 4096), 4096);
        assert_eq!(possible(Some(1024), 4096), 704);
        assert_eq!(possible(Some(64), 4096), 32);
        assert_eq!(possible(Some(1), 4096), 1);
        assert_eq!(possible(None, 4096), 4096);
        assert_eq!(possible(Some(4416), 8), 8);
    }
}
