#compdef urun
# zsh completion for urun; or: source <(urun completion zsh)

_urun() {
	local line value rest
	local -a plain open
	for line in "${(@f)$(${(Q)words[1]} __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
		value=${line%%$'\t'*}
		rest=${line#*$'\t'}
		[[ $rest == $line ]] && rest=
		case $value in
		'') ;;
		:files) _files ;;
		:dirs) _files -/ ;;
		*[=:/]) open+=("${value//:/\\:}${rest:+:$rest}") ;;
		*) plain+=("${value//:/\\:}${rest:+:$rest}") ;;
		esac
	done
	(( $#plain )) && _describe -t values value plain
	(( $#open )) && _describe -t values value open -S ''
	return 0
}
if [[ $funcstack[1] == _urun ]]; then
	_urun "$@"
else
	compdef _urun urun
fi
