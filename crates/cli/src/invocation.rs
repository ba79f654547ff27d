//! The name by which the program was called. As a kubectl plugin (`kubectl egret`) it reads from the API server, not
//! from the agent of this node. Under the name of the program that it replaces, as the image `kube-egress` starts it,
//! it behaves as that program.

use crate::args::{Arguments, SourceArgument, Verb};
use clap::{CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;
use std::path::Path;

/// The file name by which kubectl finds a plugin `egret` (kubectl's documentation, "Extend kubectl with plugins").
const KUBECTL_PLUGIN: &str = "kubectl-egret";

/// The verb that is also a program name.
const KUBE_EGRESS: &str = "kube-egress";

/// Reads the arguments of this process, or ends it with the usage.
pub fn arguments() -> Arguments {
    read(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

fn read(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let program = words.first().map(Path::new);
    let name = program.and_then(Path::file_name).unwrap_or_default();
    if name == KUBE_EGRESS {
        words.splice(..1, ["egret", KUBE_EGRESS].map(OsString::from));
        return Arguments::try_parse_from(words);
    }
    if name != KUBECTL_PLUGIN {
        return Arguments::try_parse_from(words);
    }
    let command = Arguments::command()
        .no_binary_name(true)
        .bin_name("kubectl egret");
    let matches = command.try_get_matches_from(&words[1..])?;
    let mut arguments = Arguments::from_arg_matches(&matches)?;
    match &mut arguments.verb {
        Verb::Status(asked) => asked.source.get_or_insert(SourceArgument::Kube(None)),
        Verb::Explain(asked) => asked.source.get_or_insert(SourceArgument::Kube(None)),
        _ => return Ok(arguments),
    };
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(words: &str) -> Option<SourceArgument> {
        match read(words.split(' ').map(OsString::from)).unwrap().verb {
            Verb::Status(asked) => asked.source,
            Verb::Explain(asked) => asked.source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plugin_of_kubectl_asks_the_api_server() {
        for words in ["/usr/bin/kubectl-egret status", "kubectl-egret explain a/b"] {
            assert!(
                matches!(source(words), Some(SourceArgument::Kube(None))),
                "{words}"
            );
        }
        let told = source("kubectl-egret status --source kube:/etc/other");
        assert!(matches!(told, Some(SourceArgument::Kube(Some(_)))));
    }

    #[test]
    fn by_its_own_name_it_asks_the_agent() {
        assert!(source("/usr/bin/egret status").is_none());
        assert!(source("egret explain a/b").is_none());
    }

    #[test]
    fn usage_names_the_program_as_it_was_called() {
        let error = read(["kubectl-egret", "explain"].map(OsString::from)).unwrap_err();
        assert!(
            error.to_string().contains("kubectl egret explain"),
            "{error}"
        );
    }

    #[test]
    fn under_the_name_of_kube_egress_it_is_kube_egress() {
        let words = [
            "/kube-egress",
            "--update-interval=5",
            "--vip=192.168.122.222",
        ];
        let verb = read(words.map(OsString::from)).unwrap().verb;
        assert!(matches!(verb, Verb::KubeEgress(_)), "{verb:?}");
        assert!(read(["/kube-egress", "status"].map(OsString::from)).is_err());
        assert!(read([]).is_err());
    }
}
