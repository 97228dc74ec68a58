//! The keys and the columns.

const TEXT: &str = "\
Keys
  up, down, k, j, page up, page down    select a container
  Enter, t      its timeline
  a             the autopsy of its last kill
  f             a flame graph of what it does now
  s, S          sort by the next or the previous column
  r             reverse the order
  p             rows of pods or of containers
  /             filter by a part of the name; Esc removes the filter
  left, right   10 s back or forth in the agent's history; with Shift 5 minutes
  n             back to now
  ?             this page
  q             close a page, or end

In a flame graph
  down, up      into the largest callee, and back to the caller
  left, right   the callees beside it
  Enter         zoom in; Backspace zooms out

Columns
  CPU           thousandths of a core
  THROTTLED     share of the quota's periods in which the container was throttled
  MEMORY        what the kernel cannot reclaim: without page cache
  %             of the limit; TREND shows the last ten minutes, a full bar is the limit
  LIMIT IN      the time until the limit if memory grows on as in the last minute
  DNS ERR/S     DNS queries that failed
  KILLS         OOM kills of the last hour
  -             not known: no agent, no limit, or not in the history";

pub fn lines() -> Vec<String> {
    TEXT.lines().map(str::to_owned).collect()
}
