//! How listeners and sessions end: no new work first, then time to finish, then bit by bit what is
//! left, so that not all clients come back in the same moment.

use std::time::Duration;

use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};

use crate::data::{
    gate::{Gate, Total},
    hold::Returns,
    worker::Workers,
};

/// From one bit to the next.
const STEP: Duration = Duration::from_millis(50);

/// Ends all sessions of the listener at this place, which is closed already, at the latest after
/// `grace`.
pub(super) async fn one(
    workers: &Workers,
    returns: &Returns,
    gate: &Gate,
    place: usize,
    pace: Duration,
    grace: Duration,
) {
    select! {
        () = gate.wait_empty() => return,
        () = close(workers, Some(place), pace, grace) => {}
    }
    gate.close();
    returns.wake();
    // Those that were on their way to a worker.
    while select! { () = gate.wait_empty() => false, () = sleep(STEP) => true } {
        workers.close(Some(place), usize::MAX);
        returns.wake();
    }
}

/// Ends all sessions of listeners that are closed already, at the latest after `grace`.
pub(super) async fn all(workers: &Workers, total: &Total, pace: Duration, grace: Duration) {
    select! {
        () = total.wait_empty() => {}
        () = close(workers, None, pace, grace) => {}
    }
}

/// Lets sessions go on for `grace` without `pace`, and then closes them evenly over `pace`.
async fn close(workers: &Workers, place: Option<usize>, pace: Duration, grace: Duration) {
    let end = Instant::now() + grace;
    let pace = pace.min(grace);
    sleep_until(end - pace).await;
    let steps = usize::try_from(pace.as_millis() / STEP.as_millis()).unwrap_or(usize::MAX);
    for step in (1..=steps).rev() {
        let left = workers.running(place);
        workers.close(place, left / step);
        sleep(STEP).await;
    }
    sleep_until(end).await;
    workers.close(place, usize::MAX);
}
