//! The commented recipe that `ml init` writes.

/// The recipe that `ml init` writes for an experiment named `train`.
pub fn example() -> &'static str {
    EXAMPLE
}

/// The same recipe with another name; characters that a name cannot have become
/// `-`, so that the result always parses.
pub fn init_recipe(name: &str) -> String {
    let mut name: String = name
        .chars()
        .map(|character| match character {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' => character,
            _ => '-',
        })
        .skip_while(|character| !character.is_ascii_alphanumeric())
        .take(64)
        .collect();
    name.truncate(name.trim_end_matches('-').len());
    // YAML reads these as nothing, so they would be no name.
    if name.is_empty() || name.eq_ignore_ascii_case("null") {
        name = "train".to_owned();
    }
    EXAMPLE.replacen("  name: train\n", &format!("  name: {name}\n"), 1)
}

const EXAMPLE: &str = r#"# A recipe: what `ml queue train.yaml` runs.
# `ml recipe check train.yaml` validates it; `ml explain train.yaml` shows the plan.
experiment:
  name: train
  # The program and its arguments. No shell is involved: only ${param} and
  # ${seed} are filled in, any other $ is itself.
  command: [python, train.py, --lr, "${lr}", --seed, "${seed}"]
  params: {lr: 0.1}
  # Given to the job as ${seed} and MLMESH_SEED; `none` declares that no
  # randomness is drawn.
  seed: 7
  # Several runs from one recipe: every combination of these lists,
  # or `zip: {…}`, or `random: {count: 20, seed: 1, lr: {loguniform: [1e-4, 1e-1]}}`.
  # sweep: {lr: [0.01, 0.1, 1.0]}

  # Interpreter and packages, pinned by hash (pip-compile --generate-hashes,
  # uv export, or uv.lock). `environment: current` takes the virtual environment
  # you are in, with `--repro-policy relaxed`.
  environment: {python: "3.11", lock: requirements.lock}

  # Data registered with `ml data add NAME VERSION PATH`, which prints the checksum.
  # datasets:
  #   - {name: digits, version: "1", checksum: "sha256:…", mount: data/digits}

  # Files to keep, as globs; what the job writes to MLMESH_OUTPUT_DIR is kept too.
  # outputs: [model.npz, "plots/*.svg"]

  resources: {cpus: 1, memory: 1GiB, gpus: 0, time: 10m}
  # env: {OMP_NUM_THREADS: "1"}
  # Names only; values come from the secret store or from your environment.
  # secrets: [WANDB_API_KEY]
  network: none            # none, open, or a list of hosts like ["example.org:443"]
  # api: true              # a token for the daemon's API in MLMESH_TOKEN_FILE; needs `network: open`
  retries: 1               # after a lost or interrupted attempt
  # retry_on: [exit]       # also after an exit code other than 0
  # Who is told of the end: a command (as the daemon's user), or a webhook.
  # on_finish: {webhook: "https://example.org/hook", secret: HOOK_KEY, when: [failed]}
  # What "reproduced" means for a metric.
  # tolerance: {accuracy: {abs: 0}}
"#;
