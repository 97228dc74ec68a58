# Completes podopsy in fish, with the names of pods and kills that it finds on this machine.
function __podopsy_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l current (commandline --current-token --cut-at-cursor)
    set -l candidates ($words[1] __complete -- $words[2..] "$current" 2>/dev/null)
    if test (count $candidates) -gt 0
        printf '%s\n' $candidates
    else
        __fish_complete_path "$current"
    end
end
complete --command podopsy --no-files --keep-order --arguments '(__podopsy_complete)'
