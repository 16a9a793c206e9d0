//! Which record may be why connections break: a broker that hangs up at a request, as it is over its `socket.request.max.bytes`, says so by no code.

use std::time::{Duration, Instant};

/// How often the connection breaks with the same large record as the oldest in flight before that record goes alone (DESIGN §7).
pub(super) const BREAKS_MAX: u32 = 3;
/// After this time a break no longer counts: a broker that hangs up at a record does so at each try, seconds apart.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The oldest record in flight, if it was large, when a connection broke.
#[derive(Debug)]
pub(super) struct Suspect {
    pub sequence: u64,
    breaks: u32,
    broke_at: Instant,
    /// It was sent again, apart from others, since it is suspected.
    pub is_alone: bool,
    /// The connection broke with it even then.
    pub is_guilty: bool,
}

impl Suspect {
    /// A connection broke with this record as the oldest; `is_alone` if it is tried apart from others anyway, `is_only` if no other large one was in
    /// flight there. True if it has to be taken back: to go alone, or because that did not help.
    pub fn broke(suspect: &mut Option<Self>, sequence: u64, (is_alone, is_only): (bool, bool), now: Instant) -> bool {
        let suspect = match suspect {
            Some(suspect) if suspect.sequence == sequence && now.duration_since(suspect.broke_at) < FORGOTTEN_AFTER => {
                suspect
            }
            other => other.insert(Self { sequence, breaks: 0, broke_at: now, is_alone: false, is_guilty: false }),
        };
        suspect.broke_at = now;
        suspect.breaks += 1;
        suspect.is_alone |= is_alone;
        suspect.is_guilty = suspect.is_alone && is_only;
        suspect.is_guilty || suspect.breaks == BREAKS_MAX
    }

    /// It has to go alone.
    pub fn is_certain(&self) -> bool {
        self.breaks >= BREAKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_back_at_the_third_break_and_guilty_once_one_comes_while_it_is_alone() {
        let (mut suspect, start) = (None, Instant::now());
        let broke = |suspect: &mut _, sequence| Suspect::broke(suspect, sequence, (false, true), start);
        assert!(!broke(&mut suspect, 7) && !broke(&mut suspect, 7));
        assert!(!broke(&mut suspect, 8), "another one: the count begins anew");
        assert_eq!([8, 8, 8].map(|sequence| broke(&mut suspect, sequence)), [false, true, false]);
        let guilty = |suspect: &Option<Suspect>| suspect.as_ref().is_some_and(|suspect| suspect.is_guilty);
        assert!(!guilty(&suspect), "the last break came before it was taken back");
        suspect.as_mut().unwrap().is_alone = true;
        assert!(broke(&mut suspect, 8) && guilty(&suspect));
    }

    #[test]
    fn breaks_that_lie_far_apart_do_not_add_up() {
        let (mut suspect, start) = (None, Instant::now());
        for time in 0..20 {
            assert!(!Suspect::broke(&mut suspect, 8, (false, true), start + FORGOTTEN_AFTER * time));
        }
    }
}
