//! `ml config`: every setting, its value, and where that comes from.

use serde_json::{Value, json};

use crate::cli;
use crate::config::Config;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::{Table, Tone};

/// Shows the settings that hold here: in this folder, with these flags.
pub(crate) fn config(context: &Context, verb: &cli::Config) -> Outcome {
    let here = std::env::current_dir().ok();
    let root = here.as_deref().map(crate::project::root_of);
    let config = context.config(root.as_deref())?;
    let data_dir = context.data_dir()?.display().to_string();
    match verb {
        cli::Config::Explain => explain(context, &config, &data_dir),
        cli::Config::Show => show(context, &config, &data_dir),
    }
}

/// The data directory is shown as it is resolved, also when no setting names it;
/// passwords are not shown.
fn value(key: &str, value: &str, data_dir: &str) -> String {
    if key == "client.data_dir" {
        data_dir.to_owned()
    } else {
        mlmesh_api::settings::shown(value)
    }
}

fn explain(context: &Context, config: &Config, data_dir: &str) -> Outcome {
    let output = &context.output;
    if output.json {
        let settings: Vec<Value> = config
            .all()
            .into_iter()
            .map(|(setting, text, origin)| {
                json!({
                    "key": setting.key,
                    "value": value(setting.key, text, data_dir),
                    "origin": origin.to_string(),
                    "environment": setting.env,
                    "default": setting.default,
                    "help": setting.help,
                })
            })
            .collect();
        return output.json(&json!({"schema": "mlmesh.config/1", "settings": settings}));
    }
    let mut table = Table::new(&["KEY", "VALUE", "ORIGIN", "MEANING"]);
    for (setting, text, origin) in config.all() {
        let is_default = matches!(origin, mlmesh_api::settings::Origin::Default);
        table.row([
            (setting.key.to_owned(), Tone::Plain),
            (
                value(setting.key, text, data_dir),
                if is_default { Tone::Dim } else { Tone::Good },
            ),
            (origin.to_string(), Tone::Plain),
            (setting.help.to_owned(), Tone::Dim),
        ]);
    }
    output.table(&table)
}

fn show(context: &Context, config: &Config, data_dir: &str) -> Outcome {
    let output = &context.output;
    let all = config.all();
    let values = all.iter().map(|(setting, text, _)| {
        let text = value(setting.key, text, data_dir);
        (setting.key.to_owned(), Value::from(text))
    });
    if output.json {
        let values: serde_json::Map<String, Value> = values.collect();
        return output.json(&json!({"schema": "mlmesh.config/1", "values": values}));
    }
    let mut section = "";
    for (setting, text, _) in &all {
        let (own, key) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if own != section {
            output.line(format_args!("[{own}]"))?;
            section = own;
        }
        // A JSON string is a TOML basic string.
        let text = Value::from(value(setting.key, text, data_dir));
        output.line(format_args!("{key} = {text}"))?;
    }
    Ok(())
}
