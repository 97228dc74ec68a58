#compdef podopsy
# Completes podopsy in zsh, with the names of pods and kills that it finds on this machine.
_podopsy() {
    local line value help
    local -a candidates
    for line in "${(@f)$("$words[1]" __complete -- "${(@)words[2,CURRENT]}" 2> /dev/null)}"; do
        [[ -n $line ]] || continue
        value=${line%%$'\t'*} help=${line#$value}
        candidates+=("${value//:/\\:}${help:+:${help#$'\t'}}")
    done
    if (( ${#candidates} )); then
        _describe -V podopsy candidates
    else
        _files
    fi
}
if [[ $funcstack[1] == _podopsy ]]; then
    _podopsy "$@"
else
    compdef _podopsy podopsy
fi
