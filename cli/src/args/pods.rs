//! Which pods a command is about.

use clap::Args;
use podopsy_model::Target;

use crate::selector::Selector;

/// Narrows the pods that a command is about, as kubectl does.
#[derive(Clone, Debug, Default, Args)]
pub struct PodFilterArgs {
    /// Only pods in this namespace
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,

    /// Pods in all namespaces: the default on a node
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// Only pods with these labels: key=value, key!=value, key or !key, with commas between
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<Selector>,
}

/// TARGETs of a command that is about the whole node without them.
#[derive(Clone, Debug, Default, Args)]
pub struct SelectionArgs {
    /// Pods, containers, processes or controllers, such as shop/cart, deploy/cart or pid:4242 [default: the whole node]
    #[arg(value_name = "TARGET")]
    pub targets: Vec<Target>,

    #[command(flatten)]
    pub pods: PodFilterArgs,
}
