//! What the Sentinels of a pool say, and what of it they agree on. Pure.

use std::time::Duration;

use super::election::SentinelView;
use crate::config::HostPort;

/// The Sentinels of a pool, each with one vote.
#[derive(Debug)]
pub(super) struct Council {
    quorum: usize,
    seats: Vec<Seat>,
}

/// One Sentinel, by what it said last.
#[derive(Debug, Default)]
struct Seat {
    /// It has answered, or failed, at least once.
    heard: bool,
    /// The master it names, and the config-epoch.
    named: Option<(HostPort, u64)>,
    /// It leads a failover.
    failover: bool,
    /// The replica that it promotes.
    heir: Option<HostPort>,
    /// Its last event came then.
    event: Option<Duration>,
    /// When the question was asked that it answered last.
    asked: Option<Duration>,
    /// Why it is not heard.
    silence: Option<String>,
}

/// One answer to the questions who the master is and what is going on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The master and its config-epoch; `None` if it knows no master of that name, or names no address.
    pub(super) named: Option<(HostPort, u64)>,
    /// `failover_in_progress` is among the flags.
    pub(super) failover: bool,
}

/// What an event of a failover tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It goes on, and promotes this replica as far as the event says.
    Goes(Option<HostPort>),
    /// It has ended, or it was given up.
    Ends,
    /// Something else, worth a question.
    Other,
}

impl Council {
    pub(super) fn new(count: usize, quorum: usize) -> Self {
        Self { quorum, seats: (0..count).map(|_| Seat::default()).collect() }
    }

    /// Takes in what a Sentinel answered to questions that were asked at this time.
    pub(super) fn answered(&mut self, place: usize, asked: Duration, said: Said) {
        let seat = &mut self.seats[place];
        seat.heard = true;
        seat.silence = None;
        seat.asked = Some(asked);
        seat.named = said.named;
        if said.failover {
            seat.failover = true;
        } else if seat.event.is_none_or(|event| event <= asked) {
            // An answer that was asked for before the event came knows nothing of it.
            seat.failover = false;
            seat.heir = None;
        }
    }

    /// Takes in an event. True if it tells something new.
    pub(super) fn event(&mut self, place: usize, now: Duration, event: Event) -> bool {
        let seat = &mut self.seats[place];
        let before = (seat.failover, seat.heir.clone());
        match event {
            Event::Goes(heir) => {
                seat.failover = true;
                seat.heir = heir.or_else(|| seat.heir.take());
            }
            Event::Ends => {
                seat.failover = false;
                seat.heir = None;
            }
            Event::Other => {}
        }
        seat.event = Some(now);
        before != (seat.failover, seat.heir.clone())
    }

    /// A Sentinel is not heard. One that does not run (its host refuses the connection) leads no
    /// failover: that is as good as an answer.
    pub(super) fn silent(&mut self, place: usize, asked: Duration, why: String, gone: bool) {
        let event = self.seats[place].event;
        self.seats[place] = Seat {
            heard: true,
            asked: gone.then_some(asked),
            silence: Some(why),
            event,
            ..Seat::default()
        };
    }

    /// What a quorum agrees on; `place_of` knows the backends' addresses.
    pub(super) fn view(&self, place_of: impl Fn(&HostPort) -> Option<usize>) -> SentinelView {
        let votes: Vec<_> = self.votes(&place_of);
        let agreed = |place: usize| {
            votes.iter().filter(|vote| vote.is_some_and(|(named, _)| named == place)).count()
                >= self.quorum
        };
        let named = votes
            .iter()
            .flatten()
            .copied()
            .filter(|(place, _)| agreed(*place))
            .max_by_key(|(_, epoch)| *epoch);
        // One that does not side with the quorum is stale, or of another group.
        let leads = |(seat, vote): (&Seat, &Option<(usize, u64)>)| {
            let sides = (*vote)?.0 == named?.0;
            (seat.failover && sides).then(|| seat.heir.as_ref().and_then(&place_of))
        };
        let claims: Vec<_> = self.seats.iter().zip(&votes).filter_map(leads).collect();
        let failover =
            claims.iter().find(|heir| heir.is_some()).or_else(|| claims.first()).copied();
        let complete_from = self.seats.iter().map(|seat| seat.asked).min().flatten();
        let starting = self.seats.iter().any(|seat| !seat.heard);
        SentinelView { starting, named, failover, complete_from }
    }

    fn votes(&self, place_of: impl Fn(&HostPort) -> Option<usize>) -> Vec<Option<(usize, u64)>> {
        let vote = |seat: &Seat| {
            let (address, epoch) = seat.named.as_ref()?;
            Some((place_of(address)?, *epoch))
        };
        self.seats.iter().map(vote).collect()
    }

    /// How many name this backend.
    pub(super) fn agree(
        &self,
        place: usize,
        place_of: impl Fn(&HostPort) -> Option<usize>,
    ) -> usize {
        self.votes(place_of).iter().filter(|vote| vote.is_some_and(|(p, _)| p == place)).count()
    }

    /// What a Sentinel says, in words, and whether it is heard. Names that are no backend's are
    /// marked.
    pub(super) fn says(
        &self,
        place: usize,
        name_of: impl Fn(&HostPort) -> Option<String>,
    ) -> (String, bool) {
        let show = |address: &HostPort| match name_of(address) {
            Some(name) => name,
            None => format!("{address}, which is no backend of this pool (see announce)"),
        };
        let seat = &self.seats[place];
        if let Some(why) = &seat.silence {
            return (why.clone(), false);
        }
        let mut words = match &seat.named {
            Some((address, epoch)) => format!("names {} (config-epoch {epoch})", show(address)),
            None => "names no master".to_owned(),
        };
        if seat.failover {
            words.push_str("; a failover is under way");
        }
        if let Some(heir) = &seat.heir {
            words.push_str(&format!(", it promotes {}", show(heir)));
        }
        (words, seat.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn address(port: u16) -> HostPort {
        HostPort { host: "10.0.0.1".to_owned(), port }
    }

    /// Backends are known by port: place 0 is 1, and so on. Others are unknown.
    fn view(council: &Council) -> SentinelView {
        council.view(|address| usize::from(address.port).checked_sub(1).filter(|p| *p < 3))
    }

    fn names(port: u16, epoch: u64) -> Said {
        Said { named: Some((address(port), epoch)), failover: false }
    }

    fn council(ports: [u16; 3]) -> Council {
        let mut council = Council::new(3, 2);
        for (place, port) in ports.into_iter().enumerate() {
            council.answered(place, MS, names(port, u64::from(port)));
        }
        council
    }

    #[test]
    fn a_quorum_names_and_fewer_do_not() {
        assert_eq!(view(&council([1, 1, 2])).named, Some((0, 1)));
        assert_eq!(view(&council([1, 2, 3])).named, None);
    }

    #[test]
    fn unknown_addresses_and_no_answer_at_all_are_no_votes() {
        assert_eq!(view(&council([9, 9, 9])).named, None);
        let mut council = council([1, 1, 9]);
        council.answered(0, MS, Said::default());
        assert_eq!(view(&council).named, None);
    }

    #[test]
    fn one_sentinel_cannot_say_that_another_master_fails_over() {
        let mut council = council([1, 1, 2]);
        council.event(2, 2 * MS, Event::Goes(Some(address(3))));
        assert_eq!(view(&council).failover, None, "it does not side with the quorum");
        council.event(1, 2 * MS, Event::Goes(Some(address(3))));
        assert_eq!(view(&council).failover, Some(Some(2)));
        council.event(1, 3 * MS, Event::Ends);
        assert_eq!(view(&council).failover, None);
    }

    #[test]
    fn an_answer_from_before_the_event_does_not_end_the_failover() {
        let mut council = council([1, 1, 1]);
        council.event(0, 5 * MS, Event::Goes(Some(address(2))));
        council.answered(0, 4 * MS, names(1, 1));
        assert_eq!(view(&council).failover, Some(Some(1)));
        council.answered(0, 6 * MS, Said { failover: true, ..names(1, 1) });
        assert_eq!(view(&council).failover, Some(Some(1)));
        council.answered(0, 7 * MS, names(1, 1));
        assert_eq!(view(&council).failover, None);
    }

    #[test]
    fn it_is_complete_when_all_have_answered_or_do_not_run() {
        let mut council = Council::new(3, 2);
        council.answered(0, 3 * MS, names(1, 1));
        council.answered(1, 5 * MS, names(1, 1));
        assert!(view(&council).starting);
        council.silent(2, 4 * MS, "timeout".into(), false);
        assert_eq!((view(&council).starting, view(&council).complete_from), (false, None));
        council.silent(2, 4 * MS, "refused".into(), true);
        assert_eq!(view(&council).complete_from, Some(3 * MS));
        assert_eq!(view(&council).named, Some((0, 1)));
    }
}
