# Completes podopsy in bash 4 or later, with the names of pods and kills that it finds on this machine.
_podopsy() {
    mapfile -t COMPREPLY < <("${COMP_WORDS[0]}" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2> /dev/null)
    COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
}
complete -o default -F _podopsy podopsy
