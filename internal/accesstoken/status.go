package accesstoken

import (
	"encoding/json"
	"fmt"
)

// typeStatusList is the header type of status lists
// (draft-ietf-oauth-status-list-21 section 5.1).
const typeStatusList = "statuslist+jwt"

// statusValue reads the claim status. Mechanisms other than the status list are passed
// over.
func statusValue(value string) (uri string, index uint64, ok bool) {
	ok = true
	err := members([]byte(value), func(name, value string) error {
		if name != "status_list" {
			return nil
		}
		hasIndex, hasURI := false, false
		err := members([]byte(value), func(name, value string) error {
			switch name {
			case "idx":
				index, hasIndex = integerValue(value, 0, maxCount)
			case "uri":
				uri, hasURI = textValue(value)
			}
			return nil
		})
		ok = hasIndex && hasURI && uri != ""
		return err
	})
	return uri, index, ok && err == nil
}

// StatusList is the content of a status list token of one bit each
// (draft-ietf-oauth-status-list-21 section 5.1). Times are Unix seconds.
type StatusList struct {
	URI       string // sub, which the tokens' references name
	IssuedAt  int64  // iat
	ExpiresAt int64  // exp
	TTL       int64  // ttl, in seconds
	List      string // status_list.lst: compressed, base64url
}

// SignStatusList returns the status list token of l in compact form. It returns
// [ErrNoKey] if the ring has no active key, and [ErrKey] if that is a symmetric one, whose
// signatures nobody else can check.
func (s *Signer) SignStatusList(l StatusList) (string, error) {
	k := s.ring.Active()
	if k == nil {
		return "", ErrNoKey
	}
	if _, public := k.PublicJWK(); !public {
		return "", fmt.Errorf("%w: a status list signed with %s could be checked by nobody", ErrKey, k.Algorithm())
	}
	header, err := k.headerOf(typeStatusList)
	if err != nil {
		return "", err
	}
	type list struct {
		Bits int    `json:"bits"`
		List string `json:"lst"`
	}
	payload, err := json.Marshal(struct {
		Subject   string `json:"sub"`
		IssuedAt  int64  `json:"iat"`
		ExpiresAt int64  `json:"exp"`
		TTL       int64  `json:"ttl"`
		List      list   `json:"status_list"`
	}{l.URI, l.IssuedAt, l.ExpiresAt, l.TTL, list{1, l.List}})
	if err != nil {
		return "", fmt.Errorf("accesstoken: encode the status list: %w", err)
	}
	return k.sign(header, payload)
}
