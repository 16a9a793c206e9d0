{{/* files/rules.yml, with what one sets for oneself put into its first group. */}}
{{- define "relay.rules" -}}
{{- $rules := .Files.Get "files/rules.yml" | fromYaml -}}
{{- $silence := include "relay.seconds" (list .Values.prometheusRule.silenceMax "prometheusRule.silenceMax") -}}
{{- $delivery := include "relay.seconds" (list .Values.prometheusRule.deliveryMax "prometheusRule.deliveryMax") -}}
{{- range $group := $rules.groups -}}
  {{- range $rule := $group.rules -}}
    {{- $expr := $rule.expr -}}
    {{- if eq (get $rule "record") "sipsim_relay:calls_expected" -}}{{- $expr = $.Values.prometheusRule.callsExpected -}}{{- end -}}
    {{- if eq (get $rule "record") "sipsim_relay:silence_max_seconds" -}}{{- $expr = printf "vector(%s)" $silence -}}{{- end -}}
    {{- if eq (get $rule "record") "sipsim_relay:delivery_max_seconds" -}}{{- $expr = printf "vector(%s)" $delivery -}}{{- end -}}
    {{- /* A range cannot be computed, so it stands in each of these. */ -}}
    {{- if or (has (get $rule "record") (list "sipsim_relay:calls_expected_throughout" "sipsim_relay:events_within_silence_max")) (eq (get $rule "alert") "SipsimRelaySilence") -}}
      {{- $expr = $expr | replace "[1h]" (printf "[%ss]" $silence) -}}
    {{- end -}}
    {{- $_ := set $rule "expr" $expr -}}
  {{- end -}}
{{- end -}}
{{- toYaml $rules -}}
{{- end -}}
