//! `weir pipeline`: which plugins a topic's records pass before they are stored.
//!
//! A pipeline is written as a file (JSON or TOML, the form docs/PIPELINES.md describes) or with flags: each `--plugin` begins
//! a stage, and the flags behind it belong to that stage.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Subcommand};
use serde_json::{Map, Value, json};
use weir_pipeline::PipelineSpec;

use super::{ConnectArgs, Failure};

#[derive(Debug, Args)]
pub(super) struct PipelineArgs {
    #[command(subcommand)]
    command: PipelineCommand,
}

#[derive(Debug, Subcommand)]
enum PipelineCommand {
    /// Attaches a pipeline to a topic, or replaces the one it has without losing a record
    Attach {
        /// The topic
        topic: String,
        /// The pipeline as JSON or TOML (by the file's ending); - reads JSON from standard input
        #[arg(value_name = "FILE", conflicts_with = "plugin")]
        file: Option<PathBuf>,
        #[command(flatten)]
        stages: StageFlags,
        /// Prints the pipeline's JSON and attaches nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Takes a topic's pipeline away: records are stored as they come
    Detach {
        /// The topic
        topic: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Lists pipelines
    List {
        /// The node's own JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// Stages built from flags whose order matters, which is why clap's derive cannot do it.
#[derive(Debug, Clone, Default, PartialEq)]
struct StageFlags {
    stages: Vec<Value>,
}

/// Flag, value name, help.
const STAGE_FLAGS: [(&str, &str, &str); 5] = [
    ("plugin", "NAME[@VERSION]", "Begins a stage with this plugin; repeat for a chain"),
    ("config", "JSON", "The stage's configuration"),
    ("output", "OUTPUT=TOPIC", "Topic of one of the plugin's outputs; may be repeated"),
    ("on-failure", "POLICY", "What becomes of a record the plugin fails on: fail, pass, drop or dead-letter"),
    ("dead-letter-topic", "TOPIC", "Topic for --on-failure dead-letter"),
];

impl Args for StageFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        STAGE_FLAGS.iter().fold(command, |command, (name, value, help)| {
            let arg = Arg::new(*name).long(*name).value_name(*value).help(*help).action(ArgAction::Append);
            let arg = if *name == "plugin" { arg } else { arg.requires("plugin") };
            command.arg(arg.help_heading("Stages"))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StageFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<StageFlags, clap::Error> {
        let mut flags: Vec<(usize, &str, String)> = Vec::new();
        for (name, _, _) in STAGE_FLAGS {
            let indices = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            flags.extend(indices.zip(values).map(|(index, value)| (index, name, value.clone())));
        }
        flags.sort_by_key(|(index, _, _)| *index);
        stages(flags.iter().map(|(_, name, value)| (*name, value.as_str())))
            .map(|stages| StageFlags { stages })
            .map_err(|message| clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{message}\n")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = StageFlags::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Flags in the order they were written, as the stages they describe.
fn stages<'a>(flags: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Vec<Value>, String> {
    let mut stages: Vec<Map<String, Value>> = Vec::new();
    for (flag, value) in flags {
        if flag == "plugin" {
            let mut stage = Map::new();
            match value.split_once('@') {
                Some((name, version)) => {
                    stage.insert("plugin".to_owned(), name.into());
                    stage.insert("version".to_owned(), version.into());
                }
                None => drop(stage.insert("plugin".to_owned(), value.into())),
            }
            stages.push(stage);
            continue;
        }
        let stage = stages.last_mut().ok_or_else(|| format!("--{flag} stands before the first --plugin; write it behind"))?;
        match flag {
            "config" => {
                let config: Value =
                    serde_json::from_str(value).map_err(|error| format!("--config {value}: not JSON: {error}"))?;
                stage.insert("config".to_owned(), config);
            }
            "output" => {
                let (output, topic) = value
                    .split_once('=')
                    .ok_or_else(|| format!("--output {value}: write it as OUTPUT=TOPIC, e.g. alerts=tpms.alerts"))?;
                let outputs = stage.entry("outputs").or_insert_with(|| json!({}));
                outputs[output] = topic.into();
            }
            "on-failure" => drop(stage.insert("on_failure".to_owned(), value.into())),
            _ => drop(stage.insert("dead_letter_topic".to_owned(), value.into())),
        }
    }
    Ok(stages.into_iter().map(Value::Object).collect())
}

pub(super) async fn run(args: PipelineArgs) -> Result<(), Failure> {
    match args.command {
        PipelineCommand::Attach { topic, file, stages, dry_run, connect } => {
            let pipeline = match file {
                Some(file) => read(&file)?,
                None if stages.stages.is_empty() => {
                    return Err(Failure::usage("no pipeline given").next("name a file, or plugins with --plugin"));
                }
                None => json!({ "stages": stages.stages }),
            };
            // What the node would refuse is refused here, with the same words, before anything is asked of it.
            PipelineSpec::parse(pipeline.to_string().as_bytes())
                .map_err(|error| Failure::usage(error).next("docs/PIPELINES.md shows the form"))?;
            if dry_run {
                writeln!(std::io::stdout().lock(), "{pipeline:#}")?;
                return Ok(());
            }
            let client = connect.connect().await?;
            let attached = client.admin().attach_pipeline(&topic, &pipeline.to_string()).await;
            let revision = attached.map_err(|error| connect.failure(error))?;
            writeln!(std::io::stdout().lock(), "attached to {topic}, revision {revision}")?;
            Ok(())
        }
        PipelineCommand::Detach { topic, connect } => {
            let client = connect.connect().await?;
            client.admin().detach_pipeline(&topic).await.map_err(|error| connect.failure(error))?;
            writeln!(std::io::stdout().lock(), "detached from {topic}")?;
            Ok(())
        }
        PipelineCommand::List { json, connect } => list(json, &connect).await,
    }
}

async fn list(json: bool, connect: &ConnectArgs) -> Result<(), Failure> {
    let client = connect.connect().await?;
    let answer = client.admin().list_pipelines().await.map_err(|error| connect.failure(error))?;
    let value = super::parse_answer("list of pipelines", &answer)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{value}")?;
    } else {
        for pipeline in value.as_array().into_iter().flatten() {
            writeln!(out, "{pipeline:#}")?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Value, Failure> {
    let from_stdin = file.as_os_str() == "-";
    let text = if from_stdin { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    let parsed = match file.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => toml::from_str(&text).map_err(|error| error.to_string()),
        _ => serde_json::from_str(&text).map_err(|error| error.to_string()),
    };
    parsed.map_err(|error| Failure::usage(format!("{}: {error}", file.display())).next("docs/PIPELINES.md shows the form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(flags: &[(&str, &str)]) -> Result<Value, String> {
        stages(flags.iter().copied()).map(Value::Array)
    }

    #[test]
    fn flags_belong_to_the_plugin_before_them() {
        let stages = built(&[
            ("plugin", "normalize@1.0.0"),
            ("on-failure", "dead-letter"),
            ("dead-letter-topic", "dead"),
            ("plugin", "alert"),
            ("config", r#"{"low_kpa":180}"#),
            ("output", "alerts=tpms.alerts"),
            ("output", "stats=tpms.stats"),
            ("on-failure", "pass"),
        ]);
        let expected = json!([
            { "plugin": "normalize", "version": "1.0.0", "on_failure": "dead-letter", "dead_letter_topic": "dead" },
            {
                "plugin": "alert", "config": { "low_kpa": 180 }, "on_failure": "pass",
                "outputs": { "alerts": "tpms.alerts", "stats": "tpms.stats" },
            },
        ]);
        assert_eq!(stages, Ok(expected.clone()));
        let spec = json!({ "stages": expected }).to_string();
        weir_pipeline::PipelineSpec::parse(spec.as_bytes()).expect("the node takes what the flags make");
    }

    #[test]
    fn wrong_flags_say_what_would_be_right() {
        for (flags, part) in [
            (&[("config", "{}")][..], "before the first --plugin"),
            (&[("plugin", "a"), ("config", "{")], "not JSON"),
            (&[("plugin", "a"), ("output", "alerts")], "OUTPUT=TOPIC"),
        ] {
            let error = built(flags).expect_err("must be refused");
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }
}
