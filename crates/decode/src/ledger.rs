//! What guesses have cost and earned, so that a text on which none comes true ends about as soon as without them.

/// Plain steps that may be lost before anything was earned.
const CREDIT: f64 = 0.2;

/// The share of all steps that may be lost beyond that.
const SHARE: f64 = 0.01;

/// An account in plain steps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    steps: usize,
    lost: f64,
}

impl Ledger {
    /// What the next step may lose.
    pub(crate) fn balance(&self) -> f64 {
        CREDIT + SHARE * self.steps as f64 - self.lost
    }

    /// A step was made whose guesses took the time of so many plain steps.
    pub(crate) fn spend(&mut self, steps: f64) {
        self.steps += 1;
        self.lost += steps;
    }

    /// Kept guesses saved so many plain steps.
    pub(crate) fn earn(&mut self, steps: f64) {
        self.lost -= steps;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_bounded_and_earnings_lift_the_bound() {
        let mut ledger = Ledger::default();
        for _ in 0..100 {
            ledger.spend(if ledger.balance() >= 0.15 { 0.15 } else { 0.0 });
        }
        assert!(ledger.lost > 0.9 && ledger.lost <= CREDIT + 100.0 * SHARE, "{}", ledger.lost);
        ledger.earn(3.0);
        assert!(ledger.balance() > 3.0);
    }
}
