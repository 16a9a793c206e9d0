//! Which record may be why connections break: a broker that hangs up at a request, as it is over its `socket.request.max.bytes`, says so by no code.

/// How often the connection breaks with the same large record as the oldest in flight before that record goes alone (DESIGN §7).
pub(super) const BREAKS_MAX: u32 = 3;

/// The oldest record in flight, if it was large, when a connection broke.
#[derive(Debug)]
pub(super) struct Suspect {
    pub sequence: u64,
    breaks: u32,
    /// It was sent again, apart from others, since it is suspected.
    pub is_alone: bool,
    /// The connection broke with it even then.
    pub is_guilty: bool,
}

impl Suspect {
    /// A connection broke with this record as the oldest. True if it has to be taken back: to go alone, or because that did not help.
    pub fn broke(suspect: &mut Option<Self>, sequence: u64) -> bool {
        let suspect = match suspect {
            Some(suspect) if suspect.sequence == sequence => suspect,
            other => other.insert(Self { sequence, breaks: 0, is_alone: false, is_guilty: false }),
        };
        suspect.breaks += 1;
        suspect.is_guilty = suspect.is_alone;
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
        let mut suspect = None;
        assert!(!Suspect::broke(&mut suspect, 7) && !Suspect::broke(&mut suspect, 7));
        assert!(!Suspect::broke(&mut suspect, 8), "another one: the count begins anew");
        assert_eq!([8, 8, 8].map(|sequence| Suspect::broke(&mut suspect, sequence)), [false, true, false]);
        let guilty = |suspect: &Option<Suspect>| suspect.as_ref().is_some_and(|suspect| suspect.is_guilty);
        assert!(!guilty(&suspect), "the last break came before it was taken back");
        suspect.as_mut().unwrap().is_alone = true;
        assert!(Suspect::broke(&mut suspect, 8) && guilty(&suspect));
    }
}
