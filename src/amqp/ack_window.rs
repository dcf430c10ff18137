//! Which deliveries of one channel are settled, and which acknowledgements tell the broker so in few frames.
//!
//! Pure: no clock, no I/O. The caller sends what comes out, in order.

use std::collections::VecDeque;

use crate::message::Settlement;

/// One frame to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// Acknowledge everything up to this delivery tag.
    AckUpTo(u64),
    /// Acknowledge one delivery.
    Ack(u64),
    /// Give one delivery back to its queue.
    Release(u64),
    /// Have the broker dead-letter one delivery.
    Reject(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// With a worker.
    Open,
    /// Finished; the broker does not know yet.
    Finished,
    /// The broker was told.
    Told,
}

/// The deliveries of one channel from the first unsettled one on.
#[derive(Debug)]
pub(super) struct AckWindow {
    /// The delivery tag of the first slot; all before it are settled and told.
    first: u64,
    slots: VecDeque<Slot>,
    /// Tags finished behind an open one, each with whether a tick has passed since.
    stuck: Vec<(u64, bool)>,
    /// This many stuck ones are acknowledged one by one at once.
    most_stuck: usize,
}

impl AckWindow {
    /// For a channel with this prefetch. Half of it may be stuck behind slow deliveries, no more: what is not
    /// acknowledged counts against the prefetch, and a slow head must not starve the other workers.
    pub fn new(prefetch: u16) -> Self {
        let most_stuck = usize::from(prefetch / 2).max(1);
        AckWindow { first: 1, slots: VecDeque::new(), stuck: Vec::new(), most_stuck }
    }

    /// Takes note of settlements and pushes the frames due now. What was settled before is passed over.
    pub fn settle(&mut self, settlements: impl IntoIterator<Item = (u64, Settlement)>, frames: &mut Vec<Frame>) {
        for (tag, settlement) in settlements {
            let Some(slot) = self.open_slot(tag) else { continue };
            match settlement {
                Settlement::Ack => {
                    *slot = Slot::Finished;
                    self.stuck.push((tag, false));
                }
                // Before the next AckUpTo, which would otherwise acknowledge it.
                Settlement::Release => {
                    *slot = Slot::Told;
                    frames.push(Frame::Release(tag));
                }
                Settlement::Reject => {
                    *slot = Slot::Told;
                    frames.push(Frame::Reject(tag));
                }
            }
        }
        self.advance(frames);
        if self.stuck.len() >= self.most_stuck {
            self.flush(frames);
        }
    }

    /// Acknowledges what has been stuck since before the last tick.
    pub fn tick(&mut self, frames: &mut Vec<Frame>) {
        let old = self.stuck.extract_if(.., |(_, old)| std::mem::replace(old, true));
        for (tag, _) in old {
            self.slots[(tag - self.first) as usize] = Slot::Told;
            frames.push(Frame::Ack(tag));
        }
    }

    /// Acknowledges all that is finished.
    pub fn flush(&mut self, frames: &mut Vec<Frame>) {
        for (tag, _) in self.stuck.drain(..) {
            self.slots[(tag - self.first) as usize] = Slot::Told;
            frames.push(Frame::Ack(tag));
        }
    }

    /// Whether ticks are needed.
    pub fn has_stuck(&self) -> bool {
        !self.stuck.is_empty()
    }

    /// How many deliveries up to this tag, the latest, the broker was told nothing of.
    pub fn untold(&self, latest: u64) -> usize {
        let told = self.slots.iter().filter(|slot| **slot == Slot::Told).count();
        usize::try_from((latest + 1).saturating_sub(self.first)).unwrap_or(usize::MAX) - told
    }

    fn open_slot(&mut self, tag: u64) -> Option<&mut Slot> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::Open);
        }
        Some(&mut self.slots[index]).filter(|slot| **slot == Slot::Open)
    }

    /// Acknowledges the settled prefix in one frame. It names the last tag that the broker still waits for:
    /// one that it was told of before would be an unknown delivery tag, which closes the channel.
    fn advance(&mut self, frames: &mut Vec<Frame>) {
        let mut last = None;
        while let Some(slot) = self.slots.front() {
            match slot {
                Slot::Open => break,
                Slot::Finished => last = Some(self.first),
                Slot::Told => {}
            }
            self.slots.pop_front();
            self.first += 1;
        }
        if let Some(last) = last {
            let first = self.first;
            self.stuck.retain(|(tag, _)| *tag >= first);
            frames.push(Frame::AckUpTo(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Frame::{Ack, AckUpTo, Release};
    use super::*;
    use proptest::prelude::*;

    fn acks(window: &mut AckWindow, tags: &[u64]) -> Vec<Frame> {
        let mut frames = Vec::new();
        window.settle(tags.iter().map(|tag| (*tag, Settlement::Ack)), &mut frames);
        frames
    }

    #[test]
    fn a_finished_prefix_is_one_frame() {
        let mut window = AckWindow::new(100);
        assert_eq!(acks(&mut window, &[3, 1, 2, 5]), [AckUpTo(3)]);
        assert_eq!(acks(&mut window, &[4]), [AckUpTo(5)]);
        assert!(!window.has_stuck());
    }

    #[test]
    fn what_is_stuck_behind_a_slow_head_is_acknowledged_at_the_second_tick() {
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
    fn half_the_prefetch_stuck_is_acknowledged_at_once() {
        let mut window = AckWindow::new(4);
        assert_eq!(acks(&mut window, &[2]), []);
        assert_eq!(acks(&mut window, &[3]), [Ack(2), Ack(3)]);
        assert_eq!(acks(&mut window, &[1]), [AckUpTo(1)]);
    }

    #[test]
    fn a_release_is_never_swallowed_by_the_ack_around_it() {
        let mut window = AckWindow::new(100);
        let mut frames = Vec::new();
        window.settle([(1, Settlement::Ack), (3, Settlement::Ack), (2, Settlement::Release)], &mut frames);
        assert_eq!(frames, [Release(2), AckUpTo(3)]);
        frames.clear();
        window.settle([(4, Settlement::Ack), (5, Settlement::Release)], &mut frames);
        assert_eq!(frames, [Release(5), AckUpTo(4)], "an unknown tag would close the channel");
    }

    #[test]
    fn what_the_broker_was_told_nothing_of_is_counted() {
        let mut window = AckWindow::new(100);
        assert_eq!((window.untold(0), window.untold(4)), (0, 4));
        assert_eq!(acks(&mut window, &[1, 3]), [AckUpTo(1)]);
        assert_eq!(window.untold(4), 3, "3 is finished, but stuck behind 2");
        window.settle([(4, Settlement::Release)], &mut Vec::new());
        assert_eq!(window.untold(4), 2);
        assert_eq!(acks(&mut window, &[2]), [AckUpTo(3)]);
        assert_eq!((window.untold(4), window.untold(9)), (0, 5));
    }

    #[test]
    fn settling_twice_does_nothing() {
        let mut window = AckWindow::new(100);
        assert_eq!(acks(&mut window, &[1]), [AckUpTo(1)]);
        assert_eq!(acks(&mut window, &[1, 1]), []);
        assert_eq!(acks(&mut window, &[3, 3]), []);
        assert_eq!(acks(&mut window, &[2]), [AckUpTo(3)]);
    }

    /// What RabbitMQ keeps for a channel. Panics where it would close the channel.
    fn apply(unacked: &mut Vec<u64>, released: &mut Vec<u64>, frame: Frame) {
        let (Ack(tag) | AckUpTo(tag) | Release(tag) | Frame::Reject(tag)) = frame;
        let at = unacked.iter().position(|t| *t == tag).expect("unknown delivery tag");
        match frame {
            AckUpTo(_) => drop(unacked.drain(..=at)),
            Ack(_) => drop(unacked.remove(at)),
            Release(_) | Frame::Reject(_) => released.push(unacked.remove(at)),
        }
    }

    proptest! {
        #[test]
        fn in_any_order_all_is_told_once_and_nothing_else(
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
