//! What drafting has cost and earned, so that a text on which nothing comes true ends about as soon as without drafts.

/// How much faster a draft must look before it is made: estimates err, and being slower than plain is worse than
/// being less fast.
const MARGIN: f64 = 1.05;

/// The same while the account is overdrawn: only what looks like copying is drafted.
const WARY: f64 = 1.5;

/// Plain steps that may be lost before anything was earned.
const CREDIT: f64 = 0.3;

/// The share of all steps that may be lost beyond that.
const SHARE: f64 = 0.01;

/// An account in steps of one row a branch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    steps: usize,
    lost: f64,
}

impl Ledger {
    /// How much faster a draft must look before it is made.
    pub(crate) fn margin(&self) -> f64 {
        if self.lost > CREDIT + SHARE * self.steps as f64 { WARY } else { MARGIN }
    }

    /// A step begins.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
    }

    /// Drafting took the time of so many plain steps.
    pub(crate) fn spend(&mut self, steps: f64) {
        self.lost += steps;
    }

    /// Kept tokens saved so many plain steps.
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
            ledger.step();
            if ledger.margin() == MARGIN {
                ledger.spend(0.1);
            }
        }
        assert!(ledger.lost > 1.0 && ledger.lost < CREDIT + 100.0 * SHARE + 0.2, "{}", ledger.lost);
        ledger.spend(1.0);
        assert_eq!(ledger.margin(), WARY);
        ledger.earn(1.5);
        assert_eq!(ledger.margin(), MARGIN);
    }
}
