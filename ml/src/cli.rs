//! What can be typed. The texts here are the help, the man pages and the
//! completions; nothing else says what a verb does.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};

mod bench;
mod data;
mod plot;
mod proof;
mod route;
mod service;
mod sim;
mod users;

pub(crate) use bench::{Arrivals, Bench, BenchLlm, Endpoint, TraceFormat};
pub(crate) use data::{Data, DataAdd, DataSort};
pub(crate) use plot::{Along, Metrics, Plot};
pub(crate) use proof::{Compare, Export, Import, Outputs, Reproduce, Validate};
pub(crate) use route::{Route, RouteExplain, RouteList};
pub(crate) use service::{Model, Service, StartService};
pub(crate) use sim::{Sim, SimCalibrate, SimCompare, SimRun, SimServe};
pub(crate) use users::{AddKey, Key, Permissions, User};

use crate::moved::ExpectedPlan;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default())
    .usage(AnsiColor::Yellow.on_default())
    .literal(AnsiColor::Green.on_default());

const EXAMPLES: &str = "\
Examples:
  ml up                     start the daemon
  ml init                   set up a project in this folder
  ml run train.yaml         queue a recipe and follow it to its end
  ml info @last             what the newest run did, and what it proves

A run is named by its id, by the beginning of it, or `@last`.
Exit codes: 0 done, 1 failed, 2 bad usage, 3 refused, 4 not found, 5 daemon
unreachable, 6 result invalid; `ml run` and `--wait` give the job's own code.";

const LIST_EXAMPLES: &str = "\
Examples:
  ml list --where 'metrics.accuracy > 0.9 and not phase = failed' --sort metrics.loss
  ml list --where 'params.lr in (0.1, 0.01) and created > 2d ago'
  ml list --where 'tags.team = \"a b\" or metrics.\"val/loss\".min < 0.1'

Fields: id, name, kind (single, sweep, point), phase, owner, commit, parent, priority,
created, started, ended, duration, trust (L0 to L4), metrics.NAME (the last value; also
.min .max .steps), params.NAME, tags.KEY.
Operators: = != < <= > >= ~ (contains), in (a, b), joined with and, or, not, ( ).
A comparison with what a run does not have is false.";

/// Run, queue and record experiments, with proof of what ran
#[derive(Debug, Parser)]
#[command(name = "ml", version, after_help = EXAMPLES, styles = STYLES, max_term_width = 90)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Data directory of the daemon, also MLMESH_DATA_DIR [default: ~/.local/share/mlmesh]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Connection of somebody else's daemon, also MLMESH_CONNECTION [default:
    /// connection.json in ~/.config/mlmesh, where there is one]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        display_order = 902,
        conflicts_with = "data_dir"
    )]
    pub(crate) connection: Option<PathBuf>,
    /// Print data as JSON on stdout, errors as one line of JSON on stderr
    #[arg(long, global = true, display_order = 901)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start the daemon and wait until it is ready
    Up(Up),
    /// Stop the daemon; jobs go on without it
    Down(Down),
    /// Look for what would keep runs from working, and say what to do
    Doctor(Doctor),
    /// Set up a project: mlmesh.toml, .mlignore and a commented train.yaml
    Init(Init),
    /// Send a project's files to the daemon and print the commit
    Sync(Sync),
    /// Check a recipe, or print the schema that editors use
    #[command(subcommand)]
    Recipe(Recipe),
    /// Packages that a project needs
    #[command(subcommand)]
    Deps(Deps),
    /// Show what would run and why it would wait or be refused; changes nothing
    Explain(Explain),
    /// Queue a recipe
    Queue(Queue),
    /// Queue a recipe, follow its output, exit with the job's code
    Run(Run),
    /// Put ended runs back into the queue
    Retry(Retry),
    /// List runs, newest first
    List(List),
    /// Show how many runs are in which phase, and those that matter now
    Status,
    /// Wait until runs have ended, telling each change
    Watch(Watch),
    /// Print what a job wrote
    Logs(Logs),
    /// Show everything that is recorded of a run
    Info(Info),
    /// Show the metrics of a run, or their points
    Metrics(Metrics),
    /// Draw the curves of runs, or a sweep, as a page or a drawing
    Plot(Plot),
    /// Show what differs between two runs, and nothing else
    Compare(Compare),
    /// Run a completed run once more and say whether the result is the same
    Reproduce(Reproduce),
    /// Find what is wrong with a run or a commit
    Validate(Validate),
    /// Download the outputs of a run
    Outputs(Outputs),
    /// Write a run, or a sweep, into one signed file that others can check
    Export(Export),
    /// Bring an export into this daemon, as a run to look at
    Import(Import),
    /// Keys by which people reach the daemon, and the one that signs your exports
    #[command(subcommand)]
    Key(Key),
    /// Who may do what
    #[command(subcommand)]
    User(User),
    /// Cancel runs or sweeps
    Cancel(Cancel),
    /// Set tags of a run, remove them, or show them
    Tag(Tag),
    /// Write a note on a run, or show it
    Note(Note),
    /// Keep runs and commits from prune; without a name list what is kept
    Pin(Pin),
    /// Let prune take runs and commits again
    Unpin(Unpin),
    /// Remove objects that nothing refers to, and old runs
    Prune(Prune),
    /// Register data and look at the catalog
    #[command(subcommand)]
    Data(Data),
    /// Keep values of secrets for your runs; names are shown, values never
    #[command(subcommand)]
    Secret(Secret),
    /// Models that services have loaded, and their weights
    #[command(subcommand)]
    Model(Model),
    /// Services: start them, see where they answer, end them
    #[command(subcommand)]
    Service(Service),
    /// Say why a gateway sent requests where it did; needs no daemon
    #[command(subcommand)]
    Route(Route),
    /// Try routing on engines that are only numbers; needs no daemon
    #[command(subcommand)]
    Sim(Sim),
    /// Show what happened, in order
    Events(Events),
    /// Check or read the audit trail
    #[command(subcommand)]
    Audit(Audit),
    /// Show settings and where each value comes from
    #[command(subcommand)]
    Config(Config),
    /// Put load on an engine and measure it; needs no daemon
    #[command(subcommand)]
    Bench(Bench),
    /// Live view of the daemon; end it with Ctrl-C
    Monitor,
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write the man pages into a folder
    Man(Man),
    /// Leave the session of the terminal and become another program.
    #[command(name = "detached", hide = true)]
    Detached(Detached),
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Port of the API; 0 chooses a free one and keeps it [default: 9101]
    #[arg(long, value_name = "N")]
    pub(crate) port: Option<u16>,
    /// Stay in front and log to this terminal
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Instead, have it start with the machine: writes a unit for systemd's user manager,
    /// or prints the line for crontab
    #[arg(long, conflicts_with = "foreground")]
    pub(crate) at_boot: bool,
    /// Take that away again
    #[arg(long, requires = "at_boot")]
    pub(crate) remove: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Cancel live jobs too (cause `shutdown`); queued ones stay queued
    #[arg(long)]
    pub(crate) stop_jobs: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Instead, have the daemon read everything that its content store holds, and name
    /// what is damaged
    #[arg(long)]
    pub(crate) objects: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Folder of the project; made if it is not there
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Name of the experiment [default: the folder's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// Folder of the project, or any folder inside it
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Go on: each edit becomes a commit
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Recipe {
    /// Read recipes and report every error with its line; needs no daemon
    Check {
        /// Recipes
        #[arg(required = true, value_name = "RECIPE")]
        recipes: Vec<PathBuf>,
    },
    /// Print the JSON Schema of recipes
    Schema {
        /// That of the files which describe kinds of services
        #[arg(long)]
        kind: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Deps {
    /// Write a lock in which every package is pinned by its hashes; `uv` resolves
    Lock(DepsLock),
}

#[derive(Debug, Args)]
pub(crate) struct DepsLock {
    /// What is needed: requirements.in, pyproject.toml or requirements.txt
    pub(crate) input: Option<PathBuf>,
    /// Where the lock goes; requirements.lock beside the input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Take the newest versions, also where the present lock has others
    #[arg(long)]
    pub(crate) upgrade: bool,
    /// For this version of Python
    #[arg(long, value_name = "VERSION")]
    pub(crate) python: Option<String>,
    /// Write nothing; exit code 1 when the lock is not what it would be
    #[arg(long)]
    pub(crate) check: bool,
}

/// How a recipe is submitted.
#[derive(Debug, Clone, Args)]
pub(crate) struct Submit {
    /// The recipe
    pub(crate) recipe: PathBuf,
    /// Replace a parameter or `seed`; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// `strict` enqueues only what can reach trust level L3 [default: strict]
    #[arg(long, value_name = "POLICY")]
    pub(crate) repro_policy: Option<Policy>,
    /// Larger goes first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) priority: i32,
    /// Where to run
    #[arg(long, value_name = "WHERE", default_value = "process")]
    pub(crate) on: Executor,
    /// Refuse unless the plan still has this digest, or is that of a file which
    /// `ml explain --json` wrote; a refusal then says what has moved
    #[arg(long, value_name = "SHA256|FILE")]
    pub(crate) plan: Option<ExpectedPlan>,
    /// Start only after this run has completed; repeatable
    #[arg(long, value_name = "RUN")]
    pub(crate) after: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    Strict,
    Relaxed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Executor {
    Process,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 3 when `ml queue` would refuse it; plan and reasons are printed all the same."
)]
pub(crate) struct Explain {
    #[command(flatten)]
    pub(crate) submit: Submit,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ml queue train.yaml --set lr=0.01
  id=$(ml queue -q train.yaml)
  ml queue train.yaml --wait --repro-policy relaxed")]
pub(crate) struct Queue {
    #[command(flatten)]
    pub(crate) submit: Submit,
    /// Print the id and nothing else
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Return when outputs and manifest are committed, with the job's exit code
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Ctrl-C once tells how to leave or cancel, twice cancels the run; a closed terminal
leaves it running. Exit codes: the job's own; 128+n for a signal; 124 when its time
limit ended it; 125 for every failure of ours.")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) submit: Submit,
}

#[derive(Debug, Args)]
pub(crate) struct Retry {
    /// A run, or a sweep
    pub(crate) run: String,
    /// Of a sweep, only the points that failed
    #[arg(long)]
    pub(crate) failed: bool,
}

#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct List {
    /// Only runs, points of sweeps among them, that match this expression
    #[arg(long = "where", value_name = "EXPR")]
    pub(crate) expression: Option<String>,
    /// Smallest first by this field, or largest with `:desc`; runs without it come last
    #[arg(long, value_name = "FIELD[:desc]")]
    pub(crate) sort: Option<String>,
    /// The points of this sweep, in its order
    #[arg(long, value_name = "SWEEP")]
    pub(crate) parent: Option<String>,
    /// Only runs in this phase; repeatable
    #[arg(long, value_name = "PHASE", value_parser = parse_phase)]
    pub(crate) phase: Vec<mlmesh_model::Phase>,
    /// Only runs of this owner
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) limit: u32,
    /// Go on where an earlier page ended
    #[arg(long, value_name = "N")]
    pub(crate) cursor: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Runs or sweeps
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// A run, by id, prefix or `@last`
    #[arg(default_value = "@last")]
    pub(crate) run: String,
    /// Go on until the run has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Which try, from 1 [default: the last]
    #[arg(long, value_name = "N")]
    pub(crate) attempt: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Info {
    /// A run, the digest of weights that one put out, or the path of a run_manifest.json
    #[arg(default_value = "@last", value_name = "RUN|DIGEST|MANIFEST")]
    pub(crate) run: String,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Runs or sweeps
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// A run or a sweep
    pub(crate) run: String,
    /// Tags, each `KEY=VALUE` or only `KEY`; without any those of the run are shown
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) tags: Vec<String>,
    /// Take a tag away
    #[arg(long, value_name = "KEY")]
    pub(crate) remove: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Note {
    /// A run or a sweep
    pub(crate) run: String,
    /// The note, `-` to read it from standard input, empty to take it away
    pub(crate) text: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// Runs or sweeps, or commits by their 64 hex digits
    #[arg(value_name = "RUN|COMMIT")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Unpin {
    /// Runs or sweeps, or commits by their 64 hex digits
    #[arg(required = true, value_name = "RUN|COMMIT")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Also remove runs that ended longer ago, such as `30d` or `12h`
    #[arg(long, value_name = "AGE", value_parser = crate::output::parse_age_us)]
    pub(crate) older_than: Option<i64>,
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Store a value: what comes on standard input, else it is asked for
    Set {
        /// Name of the secret, as `secrets:` in a recipe has it
        name: String,
    },
    /// List names, owners and times
    List,
    /// Forget a value
    Remove {
        /// Name of the secret
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only what came after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub(crate) after: u64,
    /// Go on as things happen
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check the chain of the whole trail
    Verify,
    /// Print rows, oldest first
    List {
        /// Only what came after this row
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Every setting, its value and where that comes from
    Explain,
    /// The values in the form of mlmesh.toml
    Show,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Which shell
    pub(crate) shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Folder for the pages; made if it is not there
    #[arg(default_value = ".", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The same, as an option
    #[arg(long, value_name = "DIR", conflicts_with = "dir", hide = true)]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Detached {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

fn parse_phase(text: &str) -> Result<mlmesh_model::Phase, String> {
    mlmesh_model::Phase::from_name(text).ok_or_else(|| {
        let names = mlmesh_model::PHASES.map(|phase| phase.as_str());
        format!("phases are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_and_option_says_what_it_does() {
        fn check(command: &clap::Command) {
            if !command.is_hide_set() {
                assert!(command.get_about().is_some(), "{}", command.get_name());
            }
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                assert!(
                    argument.get_help().is_some() || command.is_hide_set(),
                    "{} {name}",
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
