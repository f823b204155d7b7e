//! `ml doctor --objects`: the daemon reads everything that its content store holds,
//! and what is damaged is named with the commits and runs that need it.

use std::time::Duration;

use mlmesh_api::{Client, DefectDto, DefectKindDto, ScrubDto, ScrubStateDto, error_code};

use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{self, Output, Tone};

/// How often the daemon is asked how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Reads everything. Exit code 1 when something is damaged.
pub(crate) fn scrub(context: &Context) -> Outcome<Exit> {
    let output = &context.output;
    let scrub = read_everything(output, &context.client()?)?;
    if scrub.state != ScrubStateDto::Done {
        return Err(Failure {
            code: error_code::UNAVAILABLE.to_owned(),
            ..Failure::failed(
                "",
                format!(
                    "the content store was not read to the end: {}",
                    scrub.error.as_deref().unwrap_or("the daemon was restarted")
                ),
                "logs/app.log in the data directory says more; try again",
            )
        });
    }
    if output.json {
        output.json(&scrub)?;
    } else {
        print(output, &scrub)?;
    }
    Ok(if scrub.defects_total == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn read_everything(output: &Output, client: &Client) -> Outcome<ScrubDto> {
    let mut scrub = client.begin_scrub()?;
    let mut shown = 0;
    let mut progress = None;
    while scrub.state == ScrubStateDto::Running {
        std::thread::sleep(LOOK_INTERVAL);
        scrub = client.scrub()?;
        if scrub.bytes_total > 0 {
            let progress =
                progress.get_or_insert_with(|| output.progress("read", scrub.bytes_total));
            progress.add(scrub.bytes.saturating_sub(shown));
            shown = scrub.bytes;
        }
    }
    Ok(scrub)
}

fn print(output: &Output, scrub: &ScrubDto) -> Outcome {
    for defect in &scrub.defects {
        let bad = output.paint("bad", Tone::Bad);
        output.line(format_args!("{bad}  {}", defect.message))?;
        let commits: Vec<String> = defect.commits.iter().map(|it| it.0.short()).collect();
        let runs: Vec<String> = defect.runs.iter().map(ToString::to_string).collect();
        for (what, names) in [("commits", commits), ("runs", runs)] {
            if !names.is_empty() {
                output.line(format_args!("     {what}: {}", names.join(", ")))?;
            }
        }
    }
    let unnamed = scrub.defects_total - scrub.defects.len() as u64;
    if unnamed > 0 {
        output.line(format_args!("and {unnamed} more"))?;
    }
    let read = format!(
        "{}, {}",
        output::counted(scrub.objects, "object"),
        output::bytes(scrub.bytes)
    );
    if scrub.defects_total == 0 {
        return output.line(format_args!("{read}: all as written"));
    }
    output.line(format_args!("{read}: {} damaged", scrub.defects_total))?;
    if scrub.defects.iter().any(comes_again) {
        output.say(
            "hint: `ml sync` in the folder that a commit came from sends what is damaged again; \
             outputs have to be made again",
        );
    }
    Ok(())
}

/// Whether a sync can repair it; an index is made anew without one.
fn comes_again(defect: &DefectDto) -> bool {
    defect.kind != DefectKindDto::Index
}
