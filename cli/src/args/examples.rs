//! Examples of each command, printed below its options. A test parses all of them.

pub const WATCH: &str = "\
Examples:
  podopsy watch                        everything on the node
  podopsy watch dns -n shop -o json    failed queries of one namespace, one JSON object a line
  podopsy watch oom deploy/cart        OOM kills of a Deployment, also of pods that it creates later
  podopsy watch --count 1 -d 5m        the next event, or exit code 1 after five minutes";
pub const DNS: &str = "\
Examples:
  podopsy dns shop/cart                failed and slow lookups until Ctrl-C, and a summary
  podopsy dns deploy/cart --all --queries --for 30s
  podopsy dns -n shop -l app=cart -o json
  podopsy dns --dns-hook socket        in an ephemeral container: the lookups of that pod";
pub const PROFILE: &str = "\
Examples:
  podopsy profile shop/cart -w cart.svg            a flame graph of 30 s
  podopsy profile deploy/cart -d 1m -w cart.pb.gz  all pods of a Deployment, for go tool pprof
  podopsy profile cart --growth                    the code that makes memory grow
  podopsy profile cart --since 10m                 the last ten minutes, from the agent
  podopsy profile -a -o json                       the whole node, its functions as JSON";
pub const DIFF: &str = "\
Examples:
  podopsy profile diff before.pb.gz after.pb.gz
  podopsy profile diff before.pb.gz after.pb.gz -w diff.svg";
pub const OOM: &str = "\
Examples:
  podopsy oom --since 7d               OOM kills and other SIGKILLs of a week
  podopsy oom --silent                 those that Kubernetes does not show
  podopsy oom deploy/cart -o wide      those of a Deployment, also of pods that are gone
  podopsy oom show 3f2a-28908          the autopsy of one";
pub const SHOW: &str = "\
Examples:
  podopsy oom show 3f2a-28908
  podopsy oom show 3f2a -o json
  podopsy oom show --from incident.podopsy";
pub const PODS: &str = "\
Examples:
  podopsy pods -n shop                 the pods of a namespace
  podopsy pods deploy/cart -o wide
  podopsy pods --sort-by .pod.name -o custom-columns=POD:.pod.name,IP:.ips";
pub const INSPECT: &str = "\
Examples:
  podopsy inspect pid:4242             the pod of a process
  podopsy inspect cart                 the pod whose name begins so
  podopsy inspect -n shop -l app=cart -o json";
pub const DOCTOR: &str = "\
Examples:
  podopsy doctor                       what works here
  podopsy doctor -o json";
pub const EVENTS: &str = "\
Examples:
  podopsy events --since 1h shop/cart  what happened to a pod, also if it is gone
  podopsy events deploy/cart --kind dns.failure
  podopsy events -A -o jsonpath={.items[*].kind}";
pub const TIMELINE: &str = "\
Examples:
  podopsy timeline shop/cart --since 2h
  podopsy timeline deploy/cart -f      go on with what happens
  podopsy timeline -n shop -o json
  podopsy timeline --from incident.podopsy";
pub const TOP: &str = "\
Examples:
  podopsy top                          all containers, the nearest to their limit first
  podopsy top -n shop --sort cpu
  podopsy top --at 10m                 from the agent's history; left and right move in time
  podopsy top -b --count 0 -d 10s      tables for a file
  podopsy top -b -o json               one object a line";
pub const REPORT: &str = "\
Examples:
  podopsy report shop/cart -w cart.html        the last hour of a pod
  podopsy report --incident 3f2a-28908 -w oom.html
  podopsy report --from incident.podopsy -w incident.html";
pub const BUNDLE: &str = "\
Examples:
  podopsy bundle shop/cart --since 2h -w incident.podopsy
  podopsy bundle --incident 3f2a-28908 -w incident.podopsy
  podopsy bundle deploy/cart --redact names,args -w incident.podopsy
  podopsy bundle --from incident.podopsy --redact names -w public.podopsy";
pub const RESTARTS: &str = "\
Examples:
  podopsy restarts                     all pods of the node
  podopsy restarts -n shop -o wide
  podopsy restarts deploy/cart -o json";
pub const EXPLAIN: &str = "\
Examples:
  podopsy explain                      all terms
  podopsy explain incident";
pub const MCP: &str = "\
Examples:
  podopsy mcp                          the history of this node's agent
  podopsy mcp --from incident.podopsy  a bundle, on any machine";
pub const COMPLETION: &str = "\
Examples:
  podopsy completion bash
  podopsy completion zsh";
pub const NET: &str = "\
Examples:
  podopsy net shop/cart                addresses, routes, listeners, connections, and what is conspicuous
  podopsy net pid:4242 -o json         the network of a process, every field";
pub const ENTER: &str = "\
Examples:
  podopsy enter shop/cart -- ip addr   in the pod's network namespace
  podopsy enter shop/cart -- tcpdump -ni eth0 port 53
  podopsy enter shop/cart/app --ns net,pid,ipc -- ipcs -m";
pub const CORE: &str = "\
Examples:
  podopsy core shop/cart -w core.zst   the first process of the container
  podopsy core pid:4242 -w core --exclude-file-backed";
