//! The order in which what is held will be looked at when some of it must be let go.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

/// So few are not worth a sweep.
const FEW: usize = 64;

/// What is held, longest first. What was forgotten since is among it, and keeps its memory, until a sweep.
pub(super) struct Held<T> {
    order: VecDeque<Weak<T>>,
    forgotten: usize,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            forgotten: 0,
        }
    }
}

impl<T> Held<T> {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn push(&mut self, one: &Arc<T>) {
        self.order.push_back(Arc::downgrade(one));
    }

    /// The one that was not looked at for longest; the inner `None` was forgotten.
    pub fn pop(&mut self) -> Option<Option<Arc<T>>> {
        self.order.pop_front().map(|one| {
            let one = one.upgrade();
            if one.is_none() {
                self.forgotten = self.forgotten.saturating_sub(1);
            }
            one
        })
    }

    pub fn extend(&mut self, some: Vec<Weak<T>>) {
        self.order.extend(some);
    }

    /// One of them was forgotten. Once these are half of all, their memory is freed: a constant time each.
    pub fn forgot_one(&mut self) {
        self.forgotten = self.forgotten.saturating_add(1);
        if self.forgotten >= FEW && self.forgotten > self.order.len() / 2 {
            self.order.retain(|one| one.strong_count() > 0);
            self.order.shrink_to(self.order.len().saturating_mul(2));
            self.forgotten = 0;
        }
    }

    /// All were forgotten.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_lives_take_the_room_of_a_few() {
        let stays = Arc::new(0);
        let mut held = Held::default();
        held.push(&stays);
        for number in 0..100_000 {
            let short = Arc::new(number);
            held.push(&short);
            drop(short);
            held.forgot_one();
            assert!(held.len() <= 2 * FEW, "{}", held.len());
        }
        assert!(held.order.capacity() <= 8 * FEW);
        let left: Vec<_> = std::iter::from_fn(|| held.pop()).flatten().collect();
        assert_eq!(left, [stays]);
    }

    #[test]
    fn the_order_is_kept() {
        let all: Vec<Arc<usize>> = (0..1000).map(Arc::new).collect();
        let mut held = Held::default();
        all.iter().for_each(|one| held.push(one));
        let kept: Vec<_> = all.iter().filter(|one| ***one % 5 == 0).cloned().collect();
        drop(all);
        for _ in 0..800 {
            held.forgot_one();
        }
        assert!(held.len() < 500, "{}", held.len());
        let left: Vec<_> = std::iter::from_fn(|| held.pop()).flatten().collect();
        assert_eq!(left, kept);
    }
}
