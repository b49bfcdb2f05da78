//! Text and tokens: encoding, incremental decoding, chat templates, stop strings.
//!
//! Encoding is the `tokenizers` crate's, so that prompts are cut as the models were trained. Decoding is not: a
//! token's bytes are looked up once when a model loads, and a text is those bytes in a row, which makes the text
//! that streams out equal to the text decoded at once by construction, at a cost that does not grow with the text.

mod gguf_tokenizer;
mod guard;
mod limits;
mod pieces;
mod pre_tokenizer;
mod spelling;
mod stop;
mod template;
mod tokenizer;

pub use pieces::Pieces;
pub use stop::StopText;
pub use template::Template;
pub use tokenizer::Tokenizer;
