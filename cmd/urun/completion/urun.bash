# bash completion for urun; or: source <(urun completion bash)

_urun() {
	local line=${COMP_LINE:0:COMP_POINT} words cur prefix= value rest
	COMPREPLY=()
	read -ra words <<<"$line"
	case $line in *[[:space:]]) words+=('') ;; esac
	cur=${words[${#words[@]}-1]}
	# bash replaces only what is behind the last : or =.
	case $cur in *[:=]*) prefix=${cur%"${cur##*[:=]}"} ;; esac
	while IFS=$'\t' read -r value rest; do
		case $value in
		:files) compopt -o default ; continue ;;
		:dirs) compopt -o dirnames ; continue ;;
		*[=:/]) compopt -o nospace ;;
		esac
		COMPREPLY+=("${value#"$prefix"}")
	done < <("${words[0]/#\~/$HOME}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -F _urun urun
