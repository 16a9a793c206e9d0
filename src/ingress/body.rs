//! Reading a request's body within its limits.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep, sleep_until};

use super::budget::Reservation;
use super::refusal::{Refusal, Unavailable};

/// The least rate at which a body has to come, once half of `ingress.deadline` is over since its head was there. In that half nothing need come: at
/// the default it is 0.9 s, and a lost packet costs 0.2 s, lost again 0.4 s more. At this rate an ordinary body of 16 KiB takes 0.5 s. So a stranger
/// who sends that much and stops holds it for 1.4 s at most, and a larger body the deadline itself asks to be faster.
///
/// It is asked for only while half of what strangers' bodies may take is taken: while there is room, a body may come until the deadline.
const BYTES_A_SECOND_MIN: f64 = 32.0 * 1024.0;

/// How often a body that is behind that rate looks whether memory is short.
const SHORT_LOOK_EVERY: Duration = Duration::from_millis(50);

/// The whole body, of at most `body_max` bytes. Its memory counts in `budget` until the last clone of the returned bytes is gone, wherever
/// they are by then. A body that came in one frame is not copied. `grace` is how long nothing need come.
pub async fn read(
    incoming: &mut Incoming,
    body_max: usize,
    reservation: Reservation,
    grace: Duration,
) -> Result<Bytes, Refusal> {
    if incoming.size_hint().lower() > body_max as u64 {
        return Err(Refusal::TooLarge);
    }
    let mut body = Collected { first: Bytes::new(), all: Vec::new(), reservation };
    let began = Instant::now();
    while !incoming.is_end_stream() {
        let due = began + grace + Duration::from_secs_f64(body.as_ref().len() as f64 / BYTES_A_SECOND_MIN);
        let frame = tokio::select! {
            biased;
            frame = incoming.frame() => frame,
            () = body.reservation.gave_way() => return Err(Refusal::Unavailable(Unavailable::Memory)),
            () = late_and_short(&body.reservation, due) => return Err(Refusal::TooSlow),
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Refusal::BadRequest)?;
        // What is not data is trailers, which mean nothing here.
        if let Ok(data) = frame.into_data() {
            body.add(data, body_max)?;
        }
    }
    body.reservation.finish().map_err(|_| Refusal::Unavailable(Unavailable::Memory))?;
    Ok(Bytes::from_owner(body))
}

/// Returns once a body is behind the least rate while memory is short.
async fn late_and_short(reservation: &Reservation, due: Instant) {
    sleep_until(due).await;
    while !reservation.is_short() {
        sleep(SHORT_LOOK_EVERY).await;
    }
}

/// What has arrived of a body, and the memory it was allowed.
struct Collected {
    first: Bytes,
    /// Everything, once there is a second frame; it then grows with what really arrives, not with what was announced.
    all: Vec<u8>,
    reservation: Reservation,
}

impl Collected {
    fn add(&mut self, data: Bytes, body_max: usize) -> Result<(), Refusal> {
        if data.len() > body_max - self.as_ref().len() {
            return Err(Refusal::TooLarge);
        }
        self.reservation.grow(data.len()).map_err(|_| Refusal::Unavailable(Unavailable::Memory))?;
        if self.as_ref().is_empty() {
            self.first = data;
        } else {
            if self.all.is_empty() {
                self.all.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.all.extend_from_slice(&data);
        }
        Ok(())
    }
}

impl AsRef<[u8]> for Collected {
    fn as_ref(&self) -> &[u8] {
        if self.all.is_empty() { &self.first } else { &self.all }
    }
}
