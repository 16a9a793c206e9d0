{{/* The names of the accounts, and the account that is there while none is named. JSON, since a template returns text. */}}
{{- define "relay.accounts" -}}
{{- $named := .Values.config.accounts | default dict -}}
{{- if not $named -}}{{- $named = dict "default" (dict) -}}{{- end -}}
{{- $secrets := .Values.accountSecrets | default dict -}}
{{- $accounts := dict -}}
{{- $owners := dict -}}
{{- range $name, $account := $named -}}
  {{- if not (kindIs "invalid" $account) -}}
  {{- $account = deepCopy ($account | default dict) -}}
  {{- if and (eq $name "default") (not $account.path) -}}{{- $_ := set $account "path" "/webhooks/sipsim" -}}{{- end -}}
  {{- if not $account.path -}}
    {{- fail (printf "config.accounts.%s.path is missing: the path of the URL that is pasted at SIPSIM, such as /webhooks/%s" $name $name) -}}
  {{- end -}}
  {{- with get $owners $account.path -}}
    {{- fail (printf "config.accounts.%s.path: %s is the path of account %s too; each needs its own" $name $account.path .) -}}
  {{- end -}}
  {{- $_ := set $owners $account.path $name -}}
  {{- if get $secrets $name -}}
    {{- if $account.secrets -}}
      {{- fail (printf "config.accounts.%s.secrets and accountSecrets.%s both say where the secrets are: leave one out" $name $name) -}}
    {{- end -}}
    {{- $_ := set $account "secrets" (printf "/etc/sipsim-relay/accounts/%s" $name) -}}
  {{- else if not (or $account.secrets $.Values.extraEnv $.Values.extraEnvFrom) -}}
    {{- fail (printf "accountSecrets.%s is missing: {secretName: …} names the Secret that holds SIPSIM's signing secret of this account" $name) -}}
  {{- end -}}
  {{- $_ := set $accounts $name $account -}}
  {{- end -}}
{{- end -}}
{{- range $name, $_ := $secrets -}}
  {{- if not (or (hasKey $accounts $name) (eq $name "default")) -}}
    {{- fail (printf "accountSecrets.%s: there is no account of this name under config.accounts (there is: %s)" $name (keys $accounts | sortAlpha | join ", ")) -}}
  {{- end -}}
{{- end -}}
{{- $accounts | toJson -}}
{{- end -}}

{{/* One level of relay.toml: first its own keys, then its tables. Takes a list: the table, its name. Not Helm's toToml, which writes 4096 as 4096.0. */}}
{{- define "relay.table" -}}
{{- $table := index . 0 -}}
{{- $path := index . 1 -}}
{{- range $key, $value := $table -}}
  {{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ include "relay.key" $key }} = {{ include "relay.scalar" $value }}
  {{- end -}}
{{- end -}}
{{- range $key, $value := $table -}}
  {{- if kindIs "map" $value -}}
    {{- $name := include "relay.key" $key -}}
    {{- if $path -}}{{- $name = printf "%s.%s" $path $name -}}{{- end -}}
    {{- $kinds := list -}}
    {{- range $value -}}{{- $kinds = append $kinds (kindIs "map" .) -}}{{- end -}}
    {{- /* One that has nothing but tables is there by them. */ -}}
    {{- if or (not $kinds) (has false $kinds) }}
{{ printf "\n[%s]" $name }}
    {{- end -}}
    {{- include "relay.table" (list $value $name) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "relay.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{/* JSON's texts, numbers, booleans and lists of these are TOML's too; JSON escapes no more than TOML knows. */}}
{{- define "relay.scalar" -}}
{{- if kindIs "float64" . -}}
  {{- if eq (float64 (int64 .)) . -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{/* The names by which the admin port may be asked: those of config.admin.hosts, all DNS forms of both Services, and those of so many pods under the
headless one. Takes a list: the root, how many pods. */}}
{{- define "relay.adminHosts" -}}
{{- $root := index . 0 -}}
{{- $full := include "relay.fullname" $root -}}
{{- $services := list $full (printf "%s-headless" $full) -}}
{{- range until (int (index . 1)) -}}{{- $services = append $services (printf "%s-%d.%s-headless" $full . $full) -}}{{- end -}}
{{- $hosts := $root.Values.config.admin.hosts | default list -}}
{{- range $services -}}
  {{- $short := printf "%s.%s" . $root.Release.Namespace -}}
  {{- $hosts = concat $hosts (list . $short (printf "%s.svc" $short) (printf "%s.svc.cluster.local" $short)) -}}
{{- end -}}
{{- $hosts | uniq | toJson -}}
{{- end -}}

{{/* Takes a list: the root, and of how many pods the names are in it. None for a hash: a pod needs only its own, so more replicas replace nobody. */}}
{{- define "relay.toml" -}}
{{- $root := index . 0 -}}
{{- $pods := index . 1 -}}
{{- with $root -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config.admin "hosts" (include "relay.adminHosts" (list . $pods) | fromJsonArray) -}}
{{- $_ = set $config "accounts" (include "relay.accounts" . | fromJson) -}}
{{- if and $config.instance (gt (int .Values.replicas) 1) -}}
  {{- fail "config.instance: with more than one replica leave it out, so that each is called after its pod" -}}
{{- end -}}
{{- range $name := list "ingress" "admin" -}}
  {{- if regexMatch "^(127\\.|localhost|\\[::1\\])" (index $config $name).listen -}}
    {{- fail (printf "config.%s.listen: on loopback neither probes nor the load balancer reach the pod; 0.0.0.0 or [::] and a port" $name) -}}
  {{- end -}}
{{- end -}}
{{- range $name, $output := $config.outputs -}}
  {{- if and (kindIs "map" $output) (not (has ($output.type | default $name) (list "kafka" "rabbitmq" "console"))) -}}
    {{- fail (printf "config.outputs.%s.type is missing: kafka, rabbitmq or console (only an output that is called so needs none)" $name) -}}
  {{- end -}}
  {{- if kindIs "map" $output -}}
    {{- $kind := $output.type | default $name -}}
    {{- range $other, $key := dict "kafka" "brokers" "rabbitmq" "urls" -}}
      {{- if and (hasKey $output $key) (ne $kind $other) -}}
        {{- fail (printf "config.outputs.%s.%s: is a key of outputs of type %s, and this one's is %s" $name $key $other $kind) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if eq (include "relay.port" (list . "ingress")) (include "relay.port" (list . "admin")) -}}
  {{- fail (printf "config.admin.listen: port %s is that of config.ingress.listen too; the public port shows nothing of the relay" (include "relay.port" (list . "admin"))) -}}
{{- end -}}
{{- $text := include "relay.table" (list $config "") -}}
{{- if not .Values.extraVolumeMounts -}}
  {{- range regexFindAll "/etc/sipsim-relay/secrets/[^/\"]+" $text -1 -}}
    {{- if not (hasKey $root.Values.mountedSecrets (base .)) -}}
      {{- fail (printf "config names a file in %s, and mountedSecrets.%s is missing: the name of the Secret to mount there" . (base .)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
# Made by the chart from `config`: change it there.
{{- $text }}
{{- end }}
{{ end -}}

{{/* The port behind the last colon of ingress.listen or admin.listen. Takes a list: the root, the section. */}}
{{- define "relay.port" -}}
{{- regexFind "[0-9]+$" (index (index . 0).Values.config (index . 1)).listen -}}
{{- end -}}

{{/* The paths of all accounts, in order, as JSON. */}}
{{- define "relay.paths" -}}
{{- $paths := list -}}
{{- range include "relay.accounts" . | fromJson -}}{{- $paths = append $paths .path -}}{{- end -}}
{{- $paths | sortAlpha | uniq | toJson -}}
{{- end -}}

{{/* A duration of relay.toml in whole seconds, rounded up. Takes a list: the text, the key. */}}
{{- define "relay.seconds" -}}
{{- $text := index . 0 | toString | nospace -}}
{{- if not (regexMatch "^(0|[0-9]+(\\.[0-9]+)?(ms|s|m|h|d))$" $text) -}}
  {{- fail (printf "%s: %q is no duration; such as 5s, 500ms, 1m" (index . 1) $text) -}}
{{- end -}}
{{- $unit := regexFind "[a-z]+$" $text -}}
{{- $factor := get (dict "" 1.0 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0) $unit -}}
{{- mulf (regexFind "^[0-9.]+" $text | float64) $factor | ceil | int64 -}}
{{- end -}}

{{/* shutdown.delay, shutdown.drain, the 2 s within which the relay ends whatever the broker does, and 3 s for the kubelet. */}}
{{- define "relay.gracePeriod" -}}
{{- $shutdown := .Values.config.shutdown | default dict -}}
{{- $delay := include "relay.seconds" (list ($shutdown.delay | default "0s") "config.shutdown.delay") | int64 -}}
{{- $drain := include "relay.seconds" (list ($shutdown.drain | default (ternary "0s" "20s" (hasKey $shutdown "drain"))) "config.shutdown.drain") | int64 -}}
{{- add $delay $drain 2 3 -}}
{{- end -}}

{{/* A size of relay.toml or of Kubernetes in MiB, rounded down. Takes a list: the text, the key. */}}
{{- define "relay.mib" -}}
{{- $text := index . 0 | toString | nospace -}}
{{- if not (regexMatch "^[0-9]+(\\.[0-9]+)?([kKMGT]i?B?|B)?$" $text) -}}
  {{- fail (printf "%s: %q is no size; such as 8 GiB in config, 10Gi for a volume" (index . 1) $text) -}}
{{- end -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text | trimSuffix "B" | lower -}}
{{- $factor := get (dict "" 1.0 "k" 1000.0 "ki" 1024.0 "m" 1000000.0 "mi" 1048576.0 "g" 1000000000.0 "gi" 1073741824.0 "t" 1000000000000.0 "ti" 1099511627776.0) $unit -}}
{{- divf (mulf (regexFind "^[0-9.]+" $text | float64) $factor) 1048576.0 | floor | int64 -}}
{{- end -}}

{{/* Fails when the journal could fill the volume: then accepting would stop at the disk's end, not at the journal's own limit. */}}
{{- define "relay.checkVolume" -}}
{{- $journal := .Values.config.journal | default dict -}}
{{- $max := include "relay.mib" (list ($journal.size_max | default "8 GiB") "config.journal.size_max") | int64 -}}
{{- $free := include "relay.mib" (list ($journal.free_min | default "64 MiB") "config.journal.free_min") | int64 -}}
{{- $volume := include "relay.mib" (list .Values.persistence.size "persistence.size") | int64 -}}
{{- if lt $volume (add $max $free) -}}
  {{- fail (printf "persistence.size is %s, less than config.journal.size_max (%v MiB) and free_min (%v MiB) together: a larger volume or a smaller journal" .Values.persistence.size $max $free) -}}
{{- end -}}
{{- end -}}

{{/* The account whose secret signs what the chart itself sends: the one named, else the one whose path testEvent.url ends in, else the first. */}}
{{- define "relay.testAccount" -}}
{{- $accounts := include "relay.accounts" . | fromJson -}}
{{- $name := keys $accounts | sortAlpha | first -}}
{{- range $candidate, $account := $accounts -}}
  {{- if hasSuffix $account.path $.Values.testEvent.url -}}{{- $name = $candidate -}}{{- end -}}
{{- end -}}
{{- $name = .Values.testEvent.account | default $name -}}
{{- if not (hasKey $accounts $name) -}}
  {{- fail (printf "testEvent.account: there is no account %q (there is: %s)" $name (keys $accounts | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $name -}}
{{- end -}}
