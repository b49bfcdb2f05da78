//! Auto: each step drafts as much as it expects to pay on this machine, and nothing where nothing does.
//!
//! Guesses come from echoes of the text and, where there is one, from a draft model. What each is worth follows from how
//! often its like came true, what its rows cost from measured steps; a step takes the likeliest rows as long as they
//! raise the expected number of tokens per second. The rule is the exact one, so what is drafted changes no text.
//!
//! A Jacobi window was left out: on a CPU its rows cost more than the n-grams that it finds are worth.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trefoil_models::{Draft, RowId, Scores, Token};

use crate::cost::Costs;
use crate::echoes::{Echo, Index, LONGEST, echoes};
use crate::error::Result;
use crate::ledger::Ledger;
use crate::little::{Little, Reach};
use crate::odds::{Odds, Origin};
use crate::sampler::Sampler;
use crate::strategy::{Counters, Due, Hear, Live, Strategy, Verdict, walk};

/// Tokens that one step of [`Auto`] can keep, at most.
pub const AUTO_REACH: usize = LONGEST + 1;

/// How much faster a draft must look before it is made: estimates err, and being slower than plain is worse than
/// being less fast.
const MARGIN: f64 = 1.05;

/// What an estimate of a row's odds is worth: the rows that are drafted are those that look best, and some only look so.
const TRUST: f64 = 0.8;

/// The draft model stops below this probability: such a token is not worth its rows.
const DOUBT: f64 = 0.3;

/// Tokens of the draft model's chains, at most.
const CHAIN: usize = 8;

/// What [`Auto`] stands on.
pub struct AutoGround {
    /// Seconds of the model's steps, which all sessions correct.
    pub costs: Arc<Mutex<Costs>>,
    /// The draft model and the seconds of its steps.
    pub little: Option<(Little, Arc<Costs>)>,
    /// What the texts are about: tokens that they may copy.
    pub about: Vec<Token>,
    /// Tokens at the beginning of every text that `about` has too.
    pub shared: usize,
    /// Rows of a step, at most.
    pub rows: usize,
    /// The tokens that end a text.
    pub ends: Arc<[Token]>,
}

/// Auto for the branches of one session.
pub struct Auto {
    ground: AutoGround,
    about: Index,
    odds: Odds,
    ledger: Ledger,
    branches: HashMap<usize, Branch>,
    nodes: Vec<Node>,
    /// Branches of the step.
    roots: usize,
    /// Whether echoes, and whether the draft model, were ever drafted from.
    ran: (bool, bool),
}

struct Branch {
    index: Index,
    /// What may follow, as far as anybody knows; the first of two equal guesses counts.
    guesses: Vec<(Origin, Vec<Token>)>,
    draft_forwards: usize,
}

/// A row that may be drafted.
#[derive(Clone, Copy)]
struct Node {
    /// The branch's place among the live ones, and the node above; none under the root.
    place: usize,
    above: Option<usize>,
    token: Token,
    /// The probability that it is kept.
    odds: f64,
    little: bool,
    row: Option<RowId>,
}

impl Auto {
    /// Decodes with no experience yet.
    pub fn new(ground: AutoGround) -> Self {
        let mut about = Index::default();
        about.extend(&ground.about);
        Self {
            ground,
            about,
            odds: Odds::new(),
            ledger: Ledger::default(),
            branches: HashMap::new(),
            nodes: Vec::new(),
            roots: 1,
            ran: (false, false),
        }
    }

    /// Looks up the echoes of every text that is due.
    fn listen(&mut self, due: &[Due<'_>]) {
        let Self { ground, about, branches, .. } = self;
        for due in due {
            let tokens = due.text.tokens();
            let branch = branches.entry(due.branch).or_insert_with(|| Branch {
                index: Index::after(ground.shared.min(tokens.len())),
                guesses: Vec::new(),
                draft_forwards: 0,
            });
            branch.index.extend(tokens);
            let found = echoes((tokens, &branch.index), (&ground.about, about));
            let ranked = found.into_iter().enumerate();
            branch.guesses =
                ranked.map(|(rank, Echo { tokens, agree })| (Origin::Echo { agree, rank }, tokens)).collect();
        }
    }

    /// The tokens that the draft model had best write for each of `due`; 0 where its writing would not pay.
    fn chain(&mut self, due: &[Due<'_>]) -> usize {
        let Some((_, little)) = &self.ground.little else { return 0 };
        let (costs, count) = (lock(&self.ground.costs), due.len());
        self.nodes.clear();
        for (place, due) in due.iter().enumerate() {
            if let Some(branch) = self.branches.get(&due.branch) {
                plant(&mut self.nodes, place, &branch.guesses, &self.odds);
            }
        }
        let sizes = [count, self.ground.rows];
        let (_, without) = best(&mut order(&self.nodes), sizes, &costs, self.ledger.balance(), &self.nodes);
        let hit = self.odds.of(Origin::Little, 0);
        let (mut length, mut rate) = (0, without * MARGIN);
        let (mut tokens, mut sure) = (1.0, 1.0);
        for chain in 1..=CHAIN.min(self.ground.rows / count.max(1)) {
            sure *= hit;
            tokens += sure;
            let seconds = costs.of(count * (1 + chain)) + chain as f64 * little.of(count);
            let found = count as f64 * tokens / seconds;
            if found > rate {
                (length, rate) = (chain, found);
            }
        }
        length
    }
}

fn lock(costs: &Mutex<Costs>) -> MutexGuard<'_, Costs> {
    // Whoever panicked left costs that are at worst a step behind.
    costs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds what `guesses` say to the nodes of one branch, as a trie.
fn plant(nodes: &mut Vec<Node>, place: usize, guesses: &[(Origin, Vec<Token>)], odds: &Odds) {
    let first = nodes.len();
    for (origin, tokens) in guesses {
        let mut above: Option<usize> = None;
        for (ahead, &token) in tokens.iter().enumerate() {
            let known = (first..nodes.len()).find(|&at| nodes[at].above == above && nodes[at].token == token);
            let sure = above.map_or(1.0, |above| nodes[above].odds) * odds.of(*origin, ahead);
            let at = known.unwrap_or_else(|| {
                let little = *origin == Origin::Little;
                nodes.push(Node { place, above, token, odds: sure, little, row: None });
                nodes.len() - 1
            });
            above = Some(at);
        }
    }
}

/// Nodes by odds, the likeliest first and each behind the one above it.
fn order(nodes: &[Node]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by(|&a, &b| nodes[b].odds.total_cmp(&nodes[a].odds));
    order
}

/// Cuts `order` to the nodes that are worth their rows beside `roots` pending tokens, at most to `most` rows; gives tokens
/// per second too. The rows of echoes may cost up to `balance` plain steps.
fn best(
    order: &mut Vec<usize>,
    [roots, most]: [usize; 2],
    costs: &Costs,
    balance: f64,
    nodes: &[Node],
) -> (usize, f64) {
    let plain = roots as f64 / costs.of(roots);
    let (mut taken, mut rate) = (0, plain * MARGIN);
    let (mut tokens, mut sure) = (roots as f64, roots);
    for (at, &node) in order.iter().enumerate().take(most.saturating_sub(roots)) {
        tokens += TRUST * nodes[node].odds;
        sure += usize::from(nodes[node].little);
        let seconds = costs.of(roots + at + 1);
        if seconds - costs.of(sure) > balance * costs.of(roots) {
            break;
        }
        let found = tokens / seconds;
        if found > rate {
            (taken, rate) = (at + 1, found);
        }
    }
    order.truncate(taken);
    (taken, if taken == 0 { plain } else { rate })
}

impl Strategy for Auto {
    fn timed(&mut self, rows: usize, seconds: f64) {
        lock(&self.ground.costs).hear(rows, seconds);
    }

    fn prefill(&mut self, due: &[Due<'_>]) -> Result<bool> {
        self.listen(due);
        if self.chain(due) == 0 {
            return Ok(false);
        }
        match &mut self.ground.little {
            Some((little, _)) => little.prefill(due),
            None => Ok(false),
        }
    }

    fn ahead(&mut self, due: &[Due<'_>], hear: &mut Hear<'_>) -> Result<Vec<(usize, Verdict)>> {
        let most = self.chain(due);
        let Self { ground: AutoGround { little: Some((little, _)), ends, .. }, odds, branches, .. } = self
        else {
            return Ok(Vec::new());
        };
        if most == 0 {
            odds.rest();
            return Ok(Vec::new());
        }
        let chains = little.write(
            due,
            Reach { fallback: DOUBT, cumulative: false, candidates: 1.0, most, ends },
            hear,
        )?;
        for (due, chain) in due.iter().zip(chains) {
            if let Some(branch) = branches.get_mut(&due.branch) {
                branch.draft_forwards += chain.forwards;
                if !chain.tokens.is_empty() {
                    branch.guesses.insert(0, (Origin::Little, chain.tokens));
                }
            }
        }
        Ok(Vec::new())
    }

    fn propose(&mut self, live: &[Live<'_>], draft: &mut Draft) -> Result<()> {
        let Self { ground, branches, nodes, odds, ledger, ran, .. } = self;
        self.roots = live.len();
        nodes.clear();
        for (place, live) in live.iter().enumerate() {
            if let Some(branch) = branches.get(&live.branch) {
                plant(nodes, place, &branch.guesses, odds);
            }
        }
        let mut chosen = order(nodes);
        let (costs, roots) = (lock(&ground.costs), live.len());
        best(&mut chosen, [roots, ground.rows], &costs, ledger.balance(), nodes);
        let sure = chosen.iter().filter(|&&at| nodes[at].little).count();
        ledger.spend((costs.of(roots + chosen.len()) - costs.of(roots + sure)) / costs.of(roots));
        for at in chosen {
            let Node { place, above, token, little, .. } = nodes[at];
            // Nothing is likelier than what it follows, so the row above is there.
            let Some(above) = above.map_or(Some(live[place].root), |above| nodes[above].row) else {
                continue;
            };
            let row = draft.child(above, token);
            draft.score(row);
            nodes[at].row = Some(row);
            *if little { &mut ran.1 } else { &mut ran.0 } = true;
        }
        Ok(())
    }

    fn judge(
        &mut self,
        live: &Live<'_>,
        draft: &Draft,
        scores: &Scores,
        sampler: &Sampler,
    ) -> Result<Verdict> {
        let verdict = walk(live, draft, scores, sampler)?;
        let echoed = |row: &&RowId| self.nodes.iter().any(|node| node.row == Some(**row) && !node.little);
        let earned = verdict.path.iter().filter(echoed).count();
        // A token of one branch saves its share of a step of all.
        self.ledger.earn(earned as f64 / self.roots as f64);
        if let Some(branch) = self.branches.get_mut(&live.branch) {
            for (origin, tokens) in branch.guesses.drain(..) {
                for (ahead, (guess, pick)) in tokens.iter().zip(&verdict.picks).enumerate() {
                    let kept = *guess == pick.token;
                    self.odds.note(origin, ahead, kept);
                    if !kept {
                        break;
                    }
                }
            }
        }
        Ok(verdict)
    }

    fn reserve(&mut self, branch: usize, positions: usize) -> Result<bool> {
        self.ground.little.as_mut().map_or(Ok(true), |(little, _)| little.reserve(branch, positions))
    }

    fn park(&mut self, branch: usize) {
        if let Some((little, _)) = &mut self.ground.little {
            little.close(branch);
        }
    }

    fn close(&mut self, branch: usize) {
        self.park(branch);
        // Its counters stay.
        if let Some(branch) = self.branches.get_mut(&branch) {
            (branch.index, branch.guesses) = (Index::default(), Vec::new());
        }
    }

    fn counters(&self, branch: usize) -> Counters {
        let draft_forwards = self.branches.get(&branch).map_or(0, |branch| branch.draft_forwards);
        Counters { draft_forwards, ..Counters::default() }
    }

    fn ran(&self) -> Option<&'static str> {
        Some(match self.ran {
            (false, false) => "plain",
            (true, false) => "lookahead",
            (false, true) => "speculative",
            (true, true) => "lookahead+speculative",
        })
    }
}
