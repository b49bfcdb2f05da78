//! What a decoding is made of for one session of a loaded model.

use std::sync::Arc;

use trefoil_decode::{Auto, AutoGround, Bild, Jacobi, Lookahead, Plain, Strategy};

use crate::decoding::{Decoding, SCORED_ROWS};
use crate::error::{Error, Result};
use crate::loaded::Loaded;
use crate::seats::Ground;

impl Decoding {
    /// Checks that the model has what the decoding needs.
    pub(crate) fn check(self, loaded: &Loaded) -> Result<()> {
        match self {
            Self::Bild(_) if loaded.draft.is_none() => Err(Error::option(format!(
                "options.decoding is '{}' and the model was loaded without draft; allowed: 'auto', 'plain', \
                 'lookahead' or 'jacobi'",
                self.name()
            ))),
            _ => Ok(()),
        }
    }

    /// A strategy for one session, and how often an encoder ran to make it.
    ///
    /// # Errors
    /// Fails where the draft model's encoder does.
    pub(crate) fn strategy(self, ground: &Ground, loaded: &Loaded) -> Result<(Box<dyn Strategy>, usize)> {
        let (about, source) = ground.about();
        Ok(match (self, &loaded.draft) {
            (Self::Auto, draft) => {
                // A draft model has no prefix that branches share: each would have to read the document alone.
                let draft = draft.as_ref().filter(|_| !ground.shares_prefix());
                let (little, runs) = match draft {
                    Some(draft) => draft.little(about, source).map(|(little, runs)| (Some(little), runs))?,
                    None => (None, 0),
                };
                let (about, shared) =
                    if ground.shares_prefix() { (&*ground.tokens, ground.tokens.len()) } else { (about, 0) };
                let ground = AutoGround {
                    costs: Arc::clone(&loaded.costs.model),
                    little: little.zip(loaded.costs.little.clone()),
                    about: about.to_vec(),
                    shared,
                    rows: SCORED_ROWS,
                    ends: Arc::clone(&loaded.ends),
                };
                (Box::new(Auto::new(ground)), runs)
            }
            (Self::Bild(settings), Some(draft)) => {
                let (little, runs) = draft.little(about, source)?;
                (Box::new(Bild::new(settings, little, loaded.ends.clone())), runs)
            }
            (Self::Lookahead(settings), _) => (Box::new(Lookahead::new(settings, about)), 0),
            (Self::Jacobi(block), _) => (Box::new(Jacobi::new(block)), 0),
            (Self::Plain | Self::Bild(_), _) => (Box::new(Plain), 0),
        })
    }
}
