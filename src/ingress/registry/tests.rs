use super::*;

const PATIENCE: Patience = Patience { deadline: Duration::from_millis(1800), idle: Duration::from_secs(620) };

fn registry(connections_max: usize) -> Arc<Registry> {
    let evicted = IntCounterVec::new(prometheus::Opts::new("evicted", "evicted"), &["kind"]).unwrap();
    Registry::new(connections_max, IntGauge::new("open", "open").unwrap(), &evicted)
}

const TOLERANCE: Duration = Duration::from_secs(300);

fn order_of(watched: &Watched) -> Option<Order> {
    match watched.poll_order(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(order) => Some(order),
        Poll::Pending => None,
    }
}

#[test]
fn each_phase_has_its_patience() {
    let check = |phase, millis, expected| {
        assert_eq!(PATIENCE.overdue(phase, Duration::from_millis(millis)), expected, "{phase:?} for {millis} ms");
    };
    check(Phase::Head, 1799, None);
    check(Phase::Head, 1800, Some(Order::Drop));
    check(Phase::Handshake, 1800, Some(Order::Drop));
    check(Phase::Idle, 619_999, None);
    check(Phase::Idle, 620_000, Some(Order::Finish));
    check(Phase::Silent, 620_000, Some(Order::Finish));
    check(Phase::Linger, 1800, Some(Order::Drop));
    check(Phase::Request, u64::MAX / 2, None);
}

#[test]
fn the_first_byte_begins_the_head_and_an_empty_line_does_not() {
    let watched = Watched::new(1, Phase::Silent);
    watched.bytes_read(b"\r\n");
    assert_eq!(watched.phase(), Phase::Silent);
    watched.bytes_read(b"P");
    assert_eq!(watched.phase(), Phase::Head);
    let (_, first_byte) = watched.get();
    watched.bytes_read(b"OST / HTTP/1.1\r\n\r\n");
    assert_eq!(watched.request_began(), watched.began + Duration::from_micros(first_byte));
    assert_eq!(watched.phase(), Phase::Body);
    watched.bytes_read(b"body");
    assert_eq!(watched.phase(), Phase::Body, "a body's bytes begin nothing");
    watched.read_whole();
    assert_eq!(watched.get(), (Phase::Request, first_byte));
    watched.await_next(Instant::now());
    assert_eq!(watched.phase(), Phase::Idle);
}

/// As if it were in its phase for longer than one that has just come.
fn grown_up(registry: &Arc<Registry>, phase: Phase) -> Admitted {
    let mut admitted = registry.admit(phase).expect("there is room");
    let mut open = lock(&registry.open);
    open.staying.remove(&admitted.watched.id);
    let mut watched = Watched::new(admitted.watched.id, phase);
    watched.began -= YOUNG * 2;
    admitted.watched = Arc::new(watched);
    open.staying.insert(admitted.watched.id, Arc::clone(&admitted.watched));
    drop(open);
    admitted
}

#[test]
fn room_is_made_by_the_silent_then_the_slow_then_the_young_never_by_a_whole_request() {
    let registry = registry(5);
    let phases = [Phase::Request, Phase::Body, Phase::Head, Phase::Idle];
    let [serving, body, head, idle] = phases.map(|phase| grown_up(&registry, phase));
    let young = registry.admit(Phase::Silent).expect("there is room for five");
    let mut newcomers = Vec::new();
    let mut newcomer = |why| newcomers.push(registry.admit(Phase::Request).expect(why));
    newcomer("the idle one goes");
    assert_eq!(order_of(&idle.watched), Some(Order::Finish));
    newcomer("the one that reads its head goes");
    assert_eq!(order_of(&head.watched), Some(Order::Cut));
    newcomer("the one that reads its body goes");
    assert_eq!(order_of(&body.watched), Some(Order::Cut));
    assert_eq!(order_of(&young.watched), None);
    assert!(registry.admit(Phase::Request).is_none(), "four requests are under way, and one of them ends soon");
    assert_eq!(order_of(&young.watched), None);
    newcomers.clear();
    let _three = [1, 2, 3].map(|_| registry.admit(Phase::Silent).expect("there is room for five"));
    let _last = registry.admit(Phase::Request).expect("the longest here of the young goes");
    assert_eq!(order_of(&young.watched), Some(Order::Finish));
    assert_eq!(order_of(&serving.watched), None);
    assert_eq!(registry.evicted(), [1, 1, 1, 1, 0], "each is counted as what it was doing");
}

#[test]
fn one_that_has_just_come_was_not_chosen_before_what_can_be_spared_by_the_time_it_would_go() {
    let registry = registry(4);
    let _idle = grown_up(&registry, Phase::Idle);
    let answered = registry.admit(Phase::Request).expect("there is room for four");
    let young = [1, 2].map(|_| registry.admit(Phase::Silent).expect("there is room for four"));
    let _first = registry.admit(Phase::Request).expect("the idle one goes");
    answered.watched.enter(Phase::Linger);
    let _second = registry.admit(Phase::Request).expect("the one that lingers goes");
    assert!(young.iter().all(|one| order_of(&one.watched).is_none()));
    assert!(order_of(&answered.watched).is_some());
}

#[test]
fn an_order_to_go_is_obeyed_only_while_nothing_is_lost_by_it() {
    let obeyed = |phase| [Order::Finish, Order::Drop, Order::Cut].map(|order| Watched::new(1, phase).obeys(order));
    assert_eq!(obeyed(Phase::Head), [false, true, true]);
    assert_eq!(obeyed(Phase::Body), [false, false, true]);
    assert_eq!(obeyed(Phase::Request), [false, false, false]);
    let stalled = Watched::new(1, Phase::Request);
    stalled.stalled(true);
    assert!(stalled.obeys(Order::Drop), "who takes no answers is waited for no longer");
}

#[test]
fn who_was_chosen_to_go_and_then_asked_stays() {
    let registry = registry(3);
    let [first, second, third] = [1, 2, 3].map(|_| grown_up(&registry, Phase::Silent));
    let newcomer = registry.admit(Phase::Silent).expect("the first goes, and all three are chosen");
    second.watched.bytes_read(b"POST");
    let another = registry.admit(Phase::Silent).expect("the third goes");
    let orders = [&first, &second, &third, &newcomer, &another].map(|one| order_of(&one.watched));
    assert_eq!(orders, [Some(Order::Finish), None, Some(Order::Finish), None, None]);
}

#[test]
fn whoever_keeps_coming_takes_no_more_descriptors_than_are_spared() {
    let registry = registry(1);
    let mut all = Vec::new();
    for _ in 0..=LEAVING_MAX + 1 {
        all.extend(registry.admit(Phase::Silent));
    }
    assert_eq!(all.len(), LEAVING_MAX + 2);
    assert_eq!(order_of(&all[0].watched), Some(Order::Finish));
    assert_eq!(order_of(&all[LEAVING_MAX].watched), Some(Order::Cut));
    assert_eq!(order_of(&all[LEAVING_MAX + 1].watched), None, "the newest stays");
    assert!(registry.make_room());
    assert_eq!(order_of(&all[0].watched), Some(Order::Cut), "those that leave go first");
    all.drain(..=LEAVING_MAX);
    assert!(registry.make_room());
    assert_eq!(order_of(&all[0].watched), Some(Order::Cut), "then the last that can be spared");
    all.clear();
    assert!(!registry.make_room());
}

#[test]
fn newcomers_wait_while_very_many_are_to_go() {
    let registry = registry(1);
    let mut all: Vec<_> = (0..2 * LEAVING_WAITS).map_while(|_| registry.admit(Phase::Silent)).collect();
    assert_eq!(all.len(), LEAVING_WAITS + 1, "the last has the place");
    drop(all.swap_remove(0));
    assert!(registry.admit(Phase::Silent).is_some(), "one has gone");
}

#[test]
fn a_stranger_goes_before_a_connection_that_carried_a_genuine_request() {
    let registry = registry(3);
    let [known, too] = [1, 2].map(|_| grown_up(&registry, Phase::Idle));
    let stranger = registry.admit(Phase::Head).expect("there is room for three");
    known.watched.prove(TOLERANCE);
    too.watched.prove(TOLERANCE);
    let newcomer = registry.admit(Phase::Request).expect("the stranger goes");
    let orders = |all: &[&Admitted]| all.iter().map(|one| order_of(&one.watched)).collect::<Vec<_>>();
    assert_eq!(orders(&[&known, &too, &stranger]), [None, None, Some(Order::Cut)]);
    assert!(registry.admit(Phase::Silent).is_none(), "the stranger's request ends soon");
    assert_eq!(orders(&[&known, &too, &newcomer]), [None; 3]);
    newcomer.watched.enter(Phase::Linger);
    let _another = registry.admit(Phase::Silent).expect("the stranger goes");
    assert_eq!(orders(&[&known, &too, &newcomer]), [None, None, Some(Order::Cut)]);
}

#[test]
fn a_quarter_of_the_places_belongs_to_newcomers_however_many_are_proved() {
    let registry = registry(8);
    let proved =
        [Phase::Body, Phase::Idle, Phase::Idle, Phase::Body, Phase::Body, Phase::Body, Phase::Body, Phase::Body]
            .map(|phase| grown_up(&registry, phase));
    proved.iter().for_each(|one| one.watched.prove(TOLERANCE));
    let ordered = || proved.iter().map(|one| order_of(&one.watched).is_some()).collect::<Vec<_>>();
    let first = registry.admit(Phase::Silent).expect("the longest idle proved one goes");
    assert_eq!(ordered(), [false, true, false, false, false, false, false, false]);
    let second = registry.admit(Phase::Silent).expect("and the next");
    assert_eq!(ordered(), [false, false, true, false, false, false, false, false]);
    let third = registry.admit(Phase::Silent).expect("six are proved: of the two others the older goes");
    assert_eq!(ordered(), [false; 8]);
    assert_eq!([&first, &second, &third].map(|one| order_of(&one.watched).is_some()), [true, false, false]);
    third.watched.prove(TOLERANCE);
    second.watched.enter(Phase::Request);
    third.watched.enter(Phase::Request);
    let _fourth = registry.admit(Phase::Silent).expect("seven are proved: one that sends its body goes");
    assert_eq!(ordered().iter().filter(|is_ordered| **is_ordered).count(), 1);
}

#[test]
fn what_is_answered_and_only_waits_for_its_peer_to_close_is_not_taken_for_a_newcomer() {
    let registry = registry(2);
    let [newcomer, answered] =
        [Phase::Silent, Phase::Linger].map(|phase| registry.admit(phase).expect("there is room"));
    let _another = registry.admit(Phase::Silent);
    assert_eq!([&newcomer, &answered].map(|one| order_of(&one.watched)), [None, Some(Order::Cut)]);
}

#[test]
fn a_proof_lapses_with_the_tolerance() {
    let registry = registry(2);
    let [lapsed, proved] = [1, 2].map(|_| grown_up(&registry, Phase::Idle));
    proved.watched.prove(TOLERANCE);
    lapsed.watched.prove(Duration::ZERO);
    let _newcomer = registry.admit(Phase::Silent);
    assert_eq!([&lapsed, &proved].map(|one| order_of(&one.watched)), [Some(Order::Finish), None]);
}

#[test]
fn of_two_idle_ones_the_longer_goes() {
    let registry = registry(2);
    let (Some(older), Some(younger)) = (registry.admit(Phase::Idle), registry.admit(Phase::Idle)) else {
        panic!("there is room for two");
    };
    older.watched.set(Phase::Idle, 5_000_000);
    let newcomer = registry.admit(Phase::Silent);
    assert!(newcomer.is_some());
    assert_eq!(order_of(&younger.watched), Some(Order::Finish), "it idles since before the older connection did");
    assert_eq!(order_of(&older.watched), None);
}
