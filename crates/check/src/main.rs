//! `trefoil-gpu-check`: one run that says whether a device computes what the CPU does, and how fast.
//!
//! It carries the models that it needs. A card's machine has to have the driver and CUDA's libraries, and nothing of
//! this project. Everything is written over `Kernels`, so that it runs on the CPU too, where every check must hold
//! to the bit: `trefoil-gpu-check --device cpu --short`.
//!
//! The exit code is 0 where every check holds, 1 where one does not, 2 where it could not run. Goals for figures are
//! reported, and change no exit code.

mod carried;
mod costs;
mod devices;
mod exact;
mod pid;
mod report;
mod shapes;
mod subject;
mod texts;
#[path = "../../kernels/tests/twins/mod.rs"]
mod twins;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use trefoil_kernels::{Cards, Kernels, WeightType};

use carried::{Folder, Model};
use costs::{Bench, text};
use report::Report;
use shapes::Shapes;
use subject::Subject;
use twins::Pair;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "Usage: trefoil-gpu-check [options]

Checks a device against the CPU and measures it; prints a table and writes everything to a file.

  --device NAME     cuda:0, the default, cuda:N or cpu
  --short           small shapes and few texts, for a run of seconds
  --only A,B,…      some sections: kernels, texts, exact, devices, costs, pid
                    (devices: where there are several cards of one compute capability)
  --steps S:T:R,…   nothing but a few steps of R rows each, of shape S (1B, 7B or T5-large) with random weights
                    of type T, such as 7B:bf16:1,56: what a profiler is to see; can be given several times
  --model PATH      a model to check too, a folder or a .gguf file; can be given several times
  --output FILE     where the findings go as JSON; gpu-check.json by default
  --help            print this
";

const SECTIONS: [&str; 6] = ["kernels", "texts", "exact", "devices", "costs", "pid"];

struct Options {
    device: String,
    short: bool,
    only: Vec<String>,
    steps: Vec<Steps>,
    models: Vec<PathBuf>,
    output: PathBuf,
}

/// Steps for a profiler to see.
struct Steps {
    shape: String,
    ty: WeightType,
    rows: Vec<usize>,
}

/// What is checked and measured.
struct Device {
    kernels: Kernels,
    name: String,
    /// Bytes a second between it and its memory, where that is known.
    bandwidth: Option<f64>,
}

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return failed(error.as_ref()),
    };
    match run(&options) {
        Ok(report) => {
            print!("{}", report.table());
            ExitCode::from(u8::from(!report.held()))
        }
        Err(error) => failed(error.as_ref()),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("trefoil-gpu-check: {error}");
    ExitCode::from(2)
}

impl Options {
    /// Reads arguments; nothing where help is asked for.
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            device: "cuda:0".into(),
            short: false,
            only: Vec::new(),
            steps: Vec::new(),
            models: Vec::new(),
            output: "gpu-check.json".into(),
        };
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--device" => options.device = value()?,
                "--short" => options.short = true,
                "--only" => options.only.extend(value()?.split(',').map(str::to_owned)),
                "--steps" => options.steps.push(Steps::read(&value()?)?),
                "--model" => options.models.push(value()?.into()),
                "--output" => options.output = value()?.into(),
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown option '{name}'; see --help").into()),
            }
        }
        match options.only.iter().find(|name| !SECTIONS.contains(&name.as_str())) {
            Some(name) => Err(format!("--only has '{name}'; allowed: {}", SECTIONS.join(", ")).into()),
            None => Ok(Some(options)),
        }
    }

    fn wants(&self, section: &str) -> bool {
        self.steps.is_empty() && (self.only.is_empty() || self.only.iter().any(|name| name == section))
    }

    /// The device.
    fn device(&self) -> Result<Device> {
        match self.device.as_str() {
            "cpu" => Ok(Device { kernels: cpu()?, name: "cpu".into(), bandwidth: None }),
            #[cfg(feature = "emulate")]
            "emulated" => {
                Ok(Device { kernels: Kernels::emulated(&[])?, name: "emulated".into(), bandwidth: None })
            }
            name => {
                let ordinal = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                let ordinal =
                    ordinal.ok_or_else(|| format!("--device is '{name}'; allowed: cuda:N or cpu"))?;
                let kernels = Kernels::cuda(ordinal)?;
                let Cards { driver: (major, minor), cards } = Cards::find()?;
                let card = cards.get(ordinal).ok_or("the card is gone")?;
                let (memory, bandwidth) = (card.memory as f64 / 1e9, card.bandwidth as f64);
                let speed = bandwidth / 1e12;
                let name = format!(
                    "{}, {memory:.0} GB at {speed:.2} TB/s, driver for CUDA {major}.{minor}",
                    card.name
                );
                Ok(Device { kernels, name, bandwidth: Some(bandwidth).filter(|&bytes| bytes > 0.0) })
            }
        }
    }
}

impl Steps {
    fn read(given: &str) -> Result<Self> {
        let wrong = || format!("--steps is '{given}'; it should be like 7B:bf16:1,56");
        let [shape, ty, rows] = given.split(':').collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
        let ty = WeightType::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(ty));
        let rows = rows.split(',').map(|rows| rows.parse().ok().filter(|&rows| rows > 0));
        let rows = rows.collect::<Option<_>>().ok_or_else(wrong)?;
        Ok(Self { shape: shape.to_owned(), ty: ty.ok_or_else(wrong)?, rows })
    }
}

fn cpu() -> Result<Kernels> {
    Ok(Kernels::cpu(std::thread::available_parallelism().map_or(1, usize::from).min(16))?)
}

/// A model that is carried, and the draft model that was made for it.
fn pair(models: &[Model]) -> Result<(&Model, &Model)> {
    let find = |name: &str| models.iter().find(|model| model.name == name).ok_or(format!("no model {name}"));
    Ok((find("models/de-en/large")?, find("models/de-en/aligned")?))
}

fn run(options: &Options) -> Result<Report> {
    let Device { kernels, name, bandwidth } = options.device()?;
    let short = options.short;
    let (cpu, shapes) = (cpu()?, Shapes { short });
    let mut report = Report::new(name, short, kernels.graphs(), Some(options.output.clone()));
    let folder = Folder::new()?;
    let mut models = folder.models(if short { 3 } else { 7 })?;
    for source in &options.models {
        let prompts = [5, 40, 200].map(text).to_vec();
        models.push(Model { name: source.display().to_string(), source: source.clone(), prompts });
    }
    if options.wants("kernels") {
        report.section("kernels", |report| {
            let pair = Pair { cpu: cpu.clone(), card: kernels.clone() };
            for (name, check) in twins::CHECKS {
                // A device that fails ends the check and not the run.
                let found = catch_unwind(AssertUnwindSafe(|| check(&pair)));
                let found = found.unwrap_or_else(|_| Err("the device failed; see above".to_owned()));
                report.check("kernels", name, found.map(|()| String::new()).map_err(Into::into));
            }
            Ok(())
        })?;
    }
    if options.wants("texts") {
        report.section("texts", |report| {
            let tokens = if short { 12 } else { 48 };
            models.iter().try_for_each(|model| texts::texts(report, model, &cpu, &kernels, tokens))?;
            texts::paired(report, pair(&models)?, &cpu, &kernels, tokens)
        })?;
    }
    if options.wants("exact") {
        report.section("exact", |report| {
            let (tokens, asked) = if short { (12, 4) } else { (48, 12) };
            models.iter().try_for_each(|model| {
                let subject = Subject::open(&model.name, &model.source, &kernels)?;
                exact::decodings(report, &subject, &model.prompts, tokens);
                let prompts: Vec<_> = (0..asked)
                    .map(|at| text(at + 3)[at..].iter().map(|token| token % 60).collect())
                    .collect();
                let document = model.prompts.last().ok_or("a model without prompts")?;
                exact::documents(report, &subject, document, &prompts, tokens)
            })?;
            let (large, little) = pair(&models)?;
            let open = |model: &Model| Subject::open(&model.name, &model.source, &kernels);
            exact::paired(report, (&open(large)?, &open(little)?), &large.prompts, tokens);
            Ok(())
        })?;
    }
    let bench = Bench { kernels: &kernels, bandwidth, short };
    for Steps { shape, ty, rows } in &options.steps {
        let config = shapes.named(shape).ok_or_else(|| format!("no shape is called {shape}"))?;
        report.section("steps", |report| bench.steps(report, (shape, &config), *ty, rows))?;
    }
    if options.wants("devices") {
        report.section("devices", |report| {
            let Some(team) = devices::team(&options.device, &kernels)? else { return Ok(()) };
            let tokens = if short { 12 } else { 48 };
            models.iter().try_for_each(|model| devices::agree(report, model, &team, tokens))?;
            devices::measure(report, bench, ("7B", &shapes.seven_billion()), WeightType::Bf16, &team)
        })?;
    }
    if options.wants("costs") {
        report.section("costs", |report| {
            for ty in [WeightType::Bf16, WeightType::Q4K] {
                bench.measure(report, ("1B", &shapes.one_billion()), ty, false)?;
                let goals = !short && ty == WeightType::Bf16;
                bench.measure(report, ("7B", &shapes.seven_billion()), ty, goals)?;
                bench.measure(report, ("T5-large", &shapes.t5_large()), ty, false)?;
            }
            Ok(())
        })?;
    }
    if options.wants("pid") {
        report.section("pid", |report| pid::measure(report, bench, &shapes.t5_large()))?;
    }
    Ok(report)
}
