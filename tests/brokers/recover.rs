//! What was answered 2xx survives crashes of the relay and outages of the brokers, in order, as an oracle outside the process sees it. Longer
//! forms of these stand in `tests/faults`.

use std::time::Duration;

use crate::support::scene::Scene;
use crate::support::wait_until;

const LONG: Duration = Duration::from_secs(90);

#[test]
fn twenty_kills_under_load_lose_alter_and_reorder_nothing() {
    let mut scene = Scene::start("kills", "");
    let load = scene.load(8);
    let mut random = fastrand::Rng::with_seed(20);
    for _ in 0..20 {
        // Somewhere in its work: from its first events after a start to well into them.
        let more = load.accepted() + random.u64(1..400);
        wait_until("some more events to be accepted", LONG, || load.accepted() >= more);
        scene.relay.restart();
    }
    let sent = load.stop();
    scene.drained(&["kafka", "rabbitmq"], LONG);
    scene.judge(&sent, 20);
}
