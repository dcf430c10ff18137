//! Tracks which deliveries of one channel are settled, and combines their settlements into few frames.
//!
//! Pure: no clock, no I/O. The caller sends the frames in the order given.

use std::collections::VecDeque;

use crate::message::Settlement;

/// One acknowledgement frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckFrame {
    /// Acknowledge everything up to this delivery tag.
    AckUpTo(u64),
    /// Acknowledge one delivery.
    Ack(u64),
    /// Requeue one delivery.
    Release(u64),
    /// Have the broker dead-letter one delivery.
    Reject(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveryState {
    /// In flight.
    Open,
    /// Acked by its worker; the frame is not sent yet.
    Finished,
    /// A frame that settles it was sent.
    Sent,
}

/// The deliveries of one channel from the first unsettled one on.
#[derive(Debug)]
pub struct AckWindow {
    /// The delivery tag of the first state. All deliveries before it are settled, and their frames were sent.
    first: u64,
    states: VecDeque<DeliveryState>,
    /// Tags acked behind an open delivery, each with whether a tick has passed since then.
    blocked: Vec<(u64, bool)>,
    /// When this many are blocked, they are acknowledged at once, with one frame each.
    max_blocked: usize,
    /// Deliveries settled so far, by the frames that were to be sent.
    pub settled: u64,
}

impl AckWindow {
    /// For a channel with this prefetch. At most half of it may be blocked behind slow deliveries: unacknowledged deliveries
    /// count against the prefetch, and one slow delivery must not starve the other workers.
    pub fn new(prefetch: u16) -> Self {
        let max_blocked = usize::from(prefetch / 2).max(1);
        AckWindow { first: 1, states: VecDeque::new(), blocked: Vec::new(), max_blocked, settled: 0 }
    }

    /// Records settlements and appends the frames to send now. Ignores deliveries that are already settled.
    pub fn settle(&mut self, settlements: impl IntoIterator<Item = (u64, Settlement)>, frames: &mut Vec<AckFrame>) {
        for (tag, settlement) in settlements {
            let Some(state) = self.open_state(tag) else { continue };
            match settlement {
                Settlement::Ack => {
                    *state = DeliveryState::Finished;
                    self.blocked.push((tag, false));
                }
                // Sent before the next `AckUpTo`, which would otherwise acknowledge the delivery.
                Settlement::Release => {
                    *state = DeliveryState::Sent;
                    self.settled += 1;
                    frames.push(AckFrame::Release(tag));
                }
                Settlement::Reject => {
                    *state = DeliveryState::Sent;
                    self.settled += 1;
                    frames.push(AckFrame::Reject(tag));
                }
            }
        }
        self.advance(frames);
        if self.blocked.len() >= self.max_blocked {
            self.flush(frames);
        }
    }

    /// Acknowledges what has been blocked since before the last tick.
    pub fn tick(&mut self, frames: &mut Vec<AckFrame>) {
        let old = self.blocked.extract_if(.., |(_, old)| std::mem::replace(old, true));
        for (tag, _) in old {
            self.settled += 1;
            self.states[(tag - self.first) as usize] = DeliveryState::Sent;
            frames.push(AckFrame::Ack(tag));
        }
    }

    /// Acknowledges everything that is finished.
    pub fn flush(&mut self, frames: &mut Vec<AckFrame>) {
        for (tag, _) in self.blocked.drain(..) {
            self.settled += 1;
            self.states[(tag - self.first) as usize] = DeliveryState::Sent;
            frames.push(AckFrame::Ack(tag));
        }
    }

    /// Whether ticks are needed.
    pub fn has_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// How many deliveries, up to the tag `latest`, are not settled at the broker.
    pub fn unsettled(&self, latest: u64) -> usize {
        let sent = self.states.iter().filter(|state| **state == DeliveryState::Sent).count();
        usize::try_from((latest + 1).saturating_sub(self.first)).unwrap_or(usize::MAX) - sent
    }

    fn open_state(&mut self, tag: u64) -> Option<&mut DeliveryState> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        if index >= self.states.len() {
            self.states.resize(index + 1, DeliveryState::Open);
        }
        Some(&mut self.states[index]).filter(|state| **state == DeliveryState::Open)
    }

    /// Acknowledges the settled prefix in one frame. The frame names the last tag that is not settled at the broker yet: RabbitMQ
    /// closes the channel when a frame names a tag that is already settled.
    fn advance(&mut self, frames: &mut Vec<AckFrame>) {
        let mut last = None;
        while let Some(state) = self.states.front() {
            match state {
                DeliveryState::Open => break,
                DeliveryState::Finished => {
                    last = Some(self.first);
                    self.settled += 1;
                }
                DeliveryState::Sent => {}
            }
            self.states.pop_front();
            self.first += 1;
        }
        if let Some(last) = last {
            let first = self.first;
            self.blocked.retain(|(tag, _)| *tag >= first);
            frames.push(AckFrame::AckUpTo(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AckFrame::{Ack, AckUpTo, Release};
    use super::*;
    use proptest::prelude::*;

    fn acks(window: &mut AckWindow, tags: &[u64]) -> Vec<AckFrame> {
        let mut frames = Vec::new();
        window.settle(tags.iter().map(|tag| (*tag, Settlement::Ack)), &mut frames);
        frames
    }

    #[test]
    fn a_finished_prefix_is_one_frame() {
        let mut window = AckWindow::new(100);
        assert_eq!(acks(&mut window, &[3, 1, 2, 5]), [AckUpTo(3)]);
        assert_eq!(acks(&mut window, &[4]), [AckUpTo(5)]);
        assert!(!window.has_blocked());
    }

    #[test]
    fn acks_behind_a_slow_delivery_are_sent_at_the_second_tick() {
        let mut window = AckWindow::new(100);
        assert_eq!(acks(&mut window, &[2]), []);
        let mut frames = Vec::new();
        window.tick(&mut frames);
        assert_eq!(frames, []);
        assert_eq!(acks(&mut window, &[3]), []);
        window.tick(&mut frames);
        assert_eq!(frames, [Ack(2)]);
        assert_eq!(acks(&mut window, &[1]), [AckUpTo(3)]);
    }

    #[test]
    fn blocked_acks_are_sent_at_once_when_they_are_half_the_prefetch() {
        let mut window = AckWindow::new(4);
        assert_eq!(acks(&mut window, &[2]), []);
        assert_eq!(acks(&mut window, &[3]), [Ack(2), Ack(3)]);
        assert_eq!(acks(&mut window, &[1]), [AckUpTo(1)]);
    }

    #[test]
    fn a_release_is_sent_before_the_ack_around_it() {
        let mut window = AckWindow::new(100);
        let mut frames = Vec::new();
        window.settle([(1, Settlement::Ack), (3, Settlement::Ack), (2, Settlement::Release)], &mut frames);
        assert_eq!(frames, [Release(2), AckUpTo(3)]);
        frames.clear();
        window.settle([(4, Settlement::Ack), (5, Settlement::Release)], &mut frames);
        assert_eq!(frames, [Release(5), AckUpTo(4)], "an unknown tag would close the channel");
    }

    #[test]
    fn deliveries_without_a_settlement_at_the_broker_are_counted() {
        let mut window = AckWindow::new(100);
        assert_eq!((window.unsettled(0), window.unsettled(4)), (0, 4));
        assert_eq!(acks(&mut window, &[1, 3]), [AckUpTo(1)]);
        assert_eq!(window.unsettled(4), 3, "3 is finished, but blocked by 2");
        window.settle([(4, Settlement::Release)], &mut Vec::new());
        assert_eq!(window.unsettled(4), 2);
        assert_eq!(acks(&mut window, &[2]), [AckUpTo(3)]);
        assert_eq!((window.unsettled(4), window.unsettled(9)), (0, 5));
    }

    #[test]
    fn settling_twice_does_nothing() {
        let mut window = AckWindow::new(100);
        assert_eq!(acks(&mut window, &[1]), [AckUpTo(1)]);
        assert_eq!(acks(&mut window, &[1, 1]), []);
        assert_eq!(acks(&mut window, &[3, 3]), []);
        assert_eq!(acks(&mut window, &[2]), [AckUpTo(3)]);
    }

    /// Applies a frame as RabbitMQ does to a channel's deliveries. Panics where RabbitMQ would close the channel.
    fn apply(unacked: &mut Vec<u64>, released: &mut Vec<u64>, frame: AckFrame) {
        let (Ack(tag) | AckUpTo(tag) | Release(tag) | AckFrame::Reject(tag)) = frame;
        let at = unacked.iter().position(|t| *t == tag).expect("unknown delivery tag");
        match frame {
            AckUpTo(_) => drop(unacked.drain(..=at)),
            Ack(_) => drop(unacked.remove(at)),
            Release(_) | AckFrame::Reject(_) => released.push(unacked.remove(at)),
        }
    }

    proptest! {
        #[test]
        fn in_any_order_every_settlement_is_sent_once_and_nothing_else(
            order in Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle(),
            releases in proptest::collection::vec(any::<bool>(), 60),
            batch in 1..20_usize,
            prefetch in 1..120_u16,
            settled in 0..=60_usize,
        ) {
            let mut window = AckWindow::new(prefetch);
            let (mut unacked, mut released) = ((1..=60).collect::<Vec<u64>>(), Vec::new());
            let order = &order[..settled];
            for (turn, tags) in order.chunks(batch).enumerate() {
                let mut frames = Vec::new();
                let settlement = |tag: &u64| match releases[*tag as usize - 1] {
                    true => (*tag, Settlement::Release),
                    false => (*tag, Settlement::Ack),
                };
                window.settle(tags.iter().map(settlement), &mut frames);
                if turn % 3 == 0 {
                    window.tick(&mut frames);
                }
                frames.into_iter().for_each(|frame| apply(&mut unacked, &mut released, frame));
            }
            let mut frames = Vec::new();
            window.flush(&mut frames);
            frames.into_iter().for_each(|frame| apply(&mut unacked, &mut released, frame));
            let mut left: Vec<u64> = (1..=60).filter(|tag| !order.contains(tag)).collect();
            left.sort_unstable();
            prop_assert_eq!(unacked, left);
            let mut expected: Vec<u64> = order.iter().copied().filter(|tag| releases[*tag as usize - 1]).collect();
            expected.sort_unstable();
            released.sort_unstable();
            prop_assert_eq!(released, expected);
        }
    }
}
